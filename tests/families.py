"""Every family as a whole model in miniature: shapes that tell heads and groups as a real checkpoint's do."""

from dataclasses import replace
from pathlib import Path

import torch
from comparison import random_model

from minisd import store
from minisd.config import CLIP_H, PRESETS, CLIPTextConfig, ModelConfig, UNetConfig, VAEConfig
from weights_convert.model import Model, Part
from weights_convert.read import read_file
from weights_convert.write import save_file, write

WIDTH = 64                                        # of the text: one head
TEXT = CLIPTextConfig(vocab_size=1024, width=WIDTH, depth=2, heads=1)
TEXT_2 = replace(CLIP_H, vocab_size=1024, width=WIDTH, heads=1)
VAE = VAEConfig(widths=(32, 32, 64, 64), layers=1)
NAMES = ("sd15", "sd15-midless", "sd15-inpaint", "sd15-pix2pix", "sd21", "bk-base", "bk-small", "bk-tiny")


def tiny(cfg: UNetConfig) -> UNetConfig:
    return replace(cfg, widths=(64, 64, 128, 128)[:len(cfg.widths)], context_dim=WIDTH)


FAMILIES = {name: ModelConfig(unet=tiny(PRESETS[name]), vae=VAE, size=64,
                              text=(TEXT_2 if name == "sd21" else TEXT,),
                              prediction="v" if name == "sd21" else "epsilon") for name in NAMES}
# A student with other numbers of blocks in each stage.
FAMILIES["uneven"] = replace(FAMILIES["bk-base"], unet=replace(FAMILIES["bk-base"].unet, layers=(1, 2, 1, 3)))


def model(name: str, only: tuple[str, ...] = ()) -> Model:
    """A family's model with random weights, as if it had been read from a native folder."""
    cfg = FAMILIES[name]
    parts = {}
    for part, build in store.parts(cfg).items():
        if not only or part in only:
            made = random_model(build.func, build.args[0])
            parts[part] = Part(part, "ours", build.args[0], made.state_dict())
    return Model("memory", "native", parts, cfg, ())


def saved(name: str, target: Path, to: str, dtype: torch.dtype | None = None) -> Path:
    write(model(name), target, to, dtype)
    return target


def forgetful(path: Path, target: Path) -> Path:
    """The same file as other tools write it: without a word about its config."""
    save_file(target, read_file(path).tensors, {"format": "pt"}, None, True)
    return target


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file, or of the files of a folder, each with the file's name before its own."""
    if path.is_file():
        return read_file(path).tensors
    return {f"{file.relative_to(path)}:{name}": tensor for file in sorted(path.rglob("*.safetensors"))
            for name, tensor in read_file(file).tensors.items()}


def same(a: Path, b: Path) -> bool:
    """Equal names, dtypes, shapes and bytes."""
    one, other = tensors(a), tensors(b)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)
