"""The model folder that the stages of a recipe share: each takes parts that are there, adds or replaces its own."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from minisd import store
from minisd.config import ModelConfig
from minisd.errors import MinisdError


def new(cfg: ModelConfig, name: str, seed: int) -> nn.Module:
    """A part with random weights that follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = store.parts(cfg)[name]()
    if name == "unet":
        silence(module)
    return module


def silence(unet: nn.Module) -> None:
    """Zero the last layer of every residual branch and the output, so that training starts from the identity
    (Dhariwal and Nichol 2021, and latent diffusion after them)."""
    for path, module in unet.named_modules():
        if path.rpartition(".")[2] in ("conv2", "proj_out", "conv_out"):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


def present(folder: Path, name: str) -> bool:
    return (folder / f"{name}.safetensors").is_file()


def take(folder: Path, name: str) -> nn.Module:
    """A part that an earlier stage has left, in float32."""
    if not present(folder, name):
        raise MinisdError(f"the model has no {name} yet", str(folder), "an earlier stage of the recipe makes it",
                          "run the stages in their order")
    return store.load_modules(folder, (name,))[1][name]


def take_or_new(folder: Path, cfg: ModelConfig, name: str, seed: int) -> nn.Module:
    """What an earlier stage has left, else random weights."""
    return take(folder, name) if present(folder, name) else new(cfg, name, seed)


def put(folder: Path, cfg: ModelConfig, modules: Mapping[str, nn.Module]) -> None:
    """Write parts beside those that are there."""
    others = [name for name in store.parts(cfg) if present(folder, name) and name not in modules]
    kept = {name: take(folder, name) for name in others}
    store.save(folder, cfg, {**kept, **modules})
