"""Whole checkpoints of every family by the keys and shapes of the real ones, in files as large, but empty."""

import gzip
import json
from math import prod
from pathlib import Path

import pytest
import torch

from minisd.errors import MinisdError
from minisd.store import must_fit
from weights_convert.__main__ import main
from weights_convert.sources import PREFIXES, open_model
from weights_convert.tables import Row
from weights_convert.translate import from_ours

KEYS = Path(__file__).parent.parent / "goldens" / "keys"
UNET, VAE = "model.diffusion_model.", {"first_stage_model.": "vae-ldm"}
SD1 = {"cond_stage_model.transformer.text_model.": "text-sd15-ldm"} | VAE
SD2 = {"cond_stage_model.model.": "text-sd21-openclip"} | VAE
XL = {"conditioner.embedders.0.transformer.text_model.": "text-sd15-ldm",
      "conditioner.embedders.1.model.": "text-sdxl-openclip"} | VAE
REFINER = {"conditioner.embedders.0.model.": "text-sdxl-openclip"} | VAE
CONTROLNET = {"control_model.": "controlnet-sd15-ldm"}
# What it is called: the lists it is made of by their prefixes, and how many keys these are.
WHOLE = {
    "SD1.x checkpoint": ({UNET: "unet-sd15-ldm"} | SD1, 1131),
    "SD1.x inpainting checkpoint": ({UNET: "unet-sd15-inpaint-ldm"} | SD1, 1131),
    "instruct-pix2pix checkpoint": ({UNET: "unet-sd15-pix2pix-ldm"} | SD1, 1131),
    "SD2.x checkpoint": ({UNET: "unet-sd21-ldm"} | SD2, 1228),
    "SD2 depth checkpoint": ({UNET: "unet-sd2-depth-ldm"} | SD2, 1228),
    "SDXL checkpoint": ({UNET: "unet-sdxl-ldm"} | XL, 2515),
    "SDXL refiner checkpoint": ({UNET: "unet-sdxl-refiner-ldm"} | REFINER, 1858),
    "SD1.x controlnet alone": (CONTROLNET, 340),
}


def shapes_of(lists: dict[str, str]) -> dict[str, tuple[int, ...]]:
    found = {}
    for prefix, name in lists.items():
        keys = json.loads(gzip.decompress((KEYS / f"{name}.json.gz").read_bytes()))
        found |= {prefix + key: tuple(shape) for key, shape in keys.items()}
    return found


@pytest.fixture
def empty(tmp_path):
    """A file of half precision that holds nothing but its header: the rest is a hole, and never read."""
    def make(shapes: dict[str, tuple[int, ...]]) -> Path:
        header, end = {}, 0
        for key, shape in shapes.items():
            header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
            end += 2 * prod(shape)
        text = json.dumps(header).encode()
        text += b" " * (len(text) % 2)
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        return tmp_path / "model.safetensors"
    return make


def on_meta(rows: list[Row], tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what would be written."""
    return {name: tuple(tensor.shape) for name, tensor in from_ours(
        {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}, rows).items()}


@pytest.mark.parametrize("family", WHOLE)
def test_every_key_of_a_real_checkpoint_goes_both_ways(family, empty):
    lists, count = WHOLE[family]
    shapes = shapes_of(lists)
    assert len(shapes) == count
    model = open_model(empty(shapes))
    assert model.family == family and not model.notes
    must_fit(model)
    back = {}
    for part in model.parts.values():
        prefix = next(prefix for prefix, name in PREFIXES.items() if name == part.name and any(
            key.startswith(prefix) for key in shapes))
        back |= {prefix + name: shape for name, shape in on_meta(part.rows(part.dialect), part.ours()).items()}
    assert back == {key: shape for key, shape in shapes.items() if key not in model.left_out}


@pytest.mark.parametrize("family", ["SDXL checkpoint", "SDXL refiner checkpoint", "SD2 depth checkpoint"])
def test_what_is_not_drawn_is_looked_at_and_refused_by_its_name(family, empty, tmp_path, capsys):
    path = empty(shapes_of(WHOLE[family][0]))
    assert main(["inspect", str(path)]) == 0
    assert family in capsys.readouterr().out
    assert main([str(path), str(tmp_path / "out")]) == 3
    assert f"{family}\n" in capsys.readouterr().err
    with pytest.raises(MinisdError, match=family):
        open_model(path).must_be_drawable()
