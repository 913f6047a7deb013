"""A whole model in miniature, with random weights that say something: every part reacts to what it is told."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minisd import store
from minisd.config import TINY_MODEL, TINY_TEXT, ModelConfig

WINDOW = 16
MODEL = replace(
    TINY_MODEL, text=(replace(TINY_TEXT, window=WINDOW),), prediction="v", pooled_label=True, size=64,
    unet=replace(TINY_MODEL.unet, widths=(16, 32), depths=(0, 1), layers=1, label_dim=TINY_TEXT.width))


def modules(cfg: ModelConfig = MODEL) -> dict[str, nn.Module]:
    """Fresh random parts; the pictures must vary, so the last layers are larger than they are made."""
    torch.manual_seed(0)
    made = {name: build().eval() for name, build in store.parts(cfg).items()}
    made["vae"].decoder.conv_out.weight.data *= 4
    return made


def folder(path: Path, cfg: ModelConfig = MODEL) -> Path:
    """The model saved in a new folder."""
    store.save(path / "tiny", cfg, modules(cfg))
    return path / "tiny"
