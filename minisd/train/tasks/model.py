"""The model folder that the stages of a recipe share: each takes parts that are there, adds or replaces its own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from minisd import store
from minisd.clip import CLIPText
from minisd.config import ModelConfig, text_parts
from minisd.drawing.plan import Defaults
from minisd.errors import USAGE, MinisdError
from minisd.vae import VAE

T = TypeVar("T")


def seeded(seed: int, make: Callable[[], T]) -> T:
    """What is made with random weights, from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def new(cfg: ModelConfig, name: str, seed: int) -> nn.Module:
    """A part with random weights that follow from the seed."""
    module = seeded(seed, store.parts(cfg)[name])
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


def shapes(cfg: ModelConfig) -> dict[str, object]:
    """The config of each part, by the part's name."""
    return {"unet": cfg.unet, "vae": cfg.vae, "vision": cfg.vision, **text_parts(cfg.text)}


def check(folder: Path, cfg: ModelConfig, replaced: tuple[str, ...] = ()) -> None:
    """The parts that are there must be the recipe's, but for those that a stage makes anew."""
    if not (folder / store.CONFIG).is_file():
        return
    here = shapes(store.read_config(folder))
    for name, wanted in shapes(cfg).items():
        if name not in replaced and present(folder, name) and here.get(name) != wanted:
            raise MinisdError(f"the model's {name} is not the recipe's", str(folder), f"{here.get(name)}, but {wanted}",
                              "give another --out, or the recipe that the model was made by", USAGE)


def take(folder: Path, name: str) -> nn.Module:
    """A part that an earlier stage has left, in float32."""
    if not present(folder, name):
        raise MinisdError(f"the model has no {name} yet", str(folder), "an earlier stage of the recipe makes it",
                          "run the stages in their order", USAGE)
    return store.load_modules(folder, (name,))[1][name]


def take_vae(folder: Path) -> VAE:
    return cast(VAE, take(folder, "vae").requires_grad_(False))


def take_text(folder: Path) -> CLIPText:
    return cast(CLIPText, take(folder, "text"))


def take_or_new(folder: Path, cfg: ModelConfig, name: str, seed: int) -> nn.Module:
    """What an earlier stage has left, else random weights."""
    return take(folder, name) if present(folder, name) else new(cfg, name, seed)


def put(folder: Path, cfg: ModelConfig, modules: Mapping[str, nn.Module], defaults: Defaults | None = None) -> None:
    """Write parts, and how the model draws best, beside those that are there: a kill leaves the folder old or new."""
    store.save(folder, cfg, modules, keep=True, defaults=defaults)
