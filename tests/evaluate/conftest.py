"""A tiny model with random weights, and a folder of pictures with some held out: the whole program in seconds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from minisd.config import TINY_MODEL, TINY_TEXT, CLIPVisionConfig
from minisd.store import parts, save

VISION = CLIPVisionConfig(image_size=64, patch=16, width=32, depth=1, heads=4, projection_dim=16)
CFG = replace(TINY_MODEL, text=(replace(TINY_TEXT, projection_dim=16),), vision=VISION)
COLOURS = ("red", "green", "blue", "yellow", "black", "purple", "orange", "pink")
STYLES = ("flat", "cartoon")
HELD_OUT = {("red", "flat"), ("green", "cartoon"), ("blue", "flat")}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(folder, CFG, {name: build() for name, build in parts(CFG).items()}, torch.float32)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares (flat) and frames (cartoon) of eight colours; a ninth concept that is not core."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for colour in (*COLOURS, "brown"):
        for style in STYLES:
            picture = Image.new("RGB", (64, 64), "white")
            picture.paste(Image.new("RGB", (32, 32), colour), (16, 16))
            if style == "cartoon":
                picture.paste(Image.new("RGB", (16, 16), "white"), (24, 24))
            picture.save(folder / f"{colour}-{style}.png")
            split = "holdout" if (colour, style) in HELD_OUT or colour == "brown" else "train"
            rows.append({"file": f"{colour}-{style}.png", "concept": colour, "style": style, "split": split,
                         "captions": [f"{colour}, {style}", f"a {colour} thing"], "core": colour != "brown"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder
