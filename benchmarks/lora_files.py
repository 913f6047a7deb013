"""LoRA files of random numbers, in the names, ranks and precision of kohya's trainer."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from minisd.store import blank, read_config
from weights_convert.lora.adapter import Adapter, Entry, Place
from weights_convert.lora.names import modules
from weights_convert.lora.write import write_adapter

RANK, ALPHA = 16, 8.0


def make(model: str, folder: str, names: tuple[str, ...]) -> None:
    """A file of each name, for the model of a folder."""
    cfg = read_config(Path(model))
    parts = blank(cfg, ("unet", "text", "text_2"))
    places = [module.place for module in modules(cfg) if beside(module.place)]
    for n, name in enumerate(names):
        generator, entries = torch.Generator().manual_seed(n), {}
        for place in places:
            weight = cast(Tensor, parts[place.part].get_submodule(place.path).weight)
            down = torch.randn(RANK, *weight.shape[1:], generator=generator) / weight.shape[1] ** 0.5
            up = torch.randn(len(weight), RANK, *[1] * (weight.dim() - 2), generator=generator) / 16
            entries[place] = Entry("lora", {"down": down, "up": up}, ALPHA)
        write_adapter(Adapter(entries, cfg), Path(folder) / f"{name}.safetensors", dtype=torch.float16)


def beside(place: Place) -> bool:
    """Whether kohya's trainer puts a LoRA there: beside all of a transformer but its norms."""
    inside = ".attn." in place.path or (place.part != "unet" and place.path.endswith(("in_proj", "out_proj")))
    return inside and "norm" not in place.path
