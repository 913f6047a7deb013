"""The key tables against the keys of real checkpoints, and against the models themselves."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY_UNETS
from torch import nn

from minisd.clip import CLIPText, CLIPVision
from minisd.config import CLIP_H, CLIP_L, PRESETS, SD15, SD21, SDXL, CLIPVisionConfig, VAEConfig
from minisd.unet import UNet
from minisd.vae import VAE
from weights_convert.tables import clip, unet, vae
from weights_convert.translate import from_ours, to_ours

KEYS = Path(__file__).parent.parent / "goldens" / "keys"
SDXL_REFINER = replace(SD21, widths=(384, 768, 1536, 1536), depths=(0, 4, 4, 0), mid_depth=4, context_dim=1280,
                       label_dim=2560)
CLIP_G = replace(CLIP_H, width=1280, depth=32, heads=20, projection_dim=1280, final_norm=False)

# file of keys: our model, its config, the table of its part, the dialect
CHECKPOINTS = {
    "unet-sd15-ldm": (UNet, SD15, unet.rows, "ldm"),
    "unet-sd15-diffusers": (UNet, SD15, unet.rows, "diffusers"),
    "unet-sd15-inpaint-ldm": (UNet, PRESETS["sd15-inpaint"], unet.rows, "ldm"),
    "unet-sd15-pix2pix-ldm": (UNet, PRESETS["sd15-pix2pix"], unet.rows, "ldm"),
    "unet-sd21-ldm": (UNet, SD21, unet.rows, "ldm"),
    "unet-sd2-depth-ldm": (UNet, replace(SD21, in_channels=5), unet.rows, "ldm"),
    "unet-sdxl-ldm": (UNet, SDXL, unet.rows, "ldm"),
    "unet-sdxl-refiner-ldm": (UNet, SDXL_REFINER, unet.rows, "ldm"),
    "vae-ldm": (VAE, VAEConfig(), vae.rows, "ldm"),
    "vae-diffusers": (VAE, VAEConfig(), vae.rows, "diffusers"),
    "text-sd15-ldm": (CLIPText, CLIP_L, clip.text_rows, "hf-bare"),
    "text-sd15-hf": (CLIPText, CLIP_L, clip.text_rows, "hf-bare"),
    "text-sd21-openclip": (CLIPText, replace(CLIP_H, projection_dim=1024), clip.text_rows, "openclip"),
    "text-wd-openclip": (CLIPText, replace(CLIP_H, depth=23, skipped_layers=0), clip.text_rows, "openclip"),
    "text-sdxl-openclip": (CLIPText, CLIP_G, clip.text_rows, "openclip"),
}
LEFT_BEHIND = {"text-sd15-ldm": {"embeddings.position_ids"}, "text-sd21-openclip": {"logit_scale"},
               "text-sdxl-openclip": {"logit_scale"}}


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def on_meta(model, cfg) -> nn.Module:
    with torch.device("meta"):
        return model(cfg)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_real_keys_translate_one_to_one(checkpoint):
    model, cfg, rows, dialect = CHECKPOINTS[checkpoint]
    keys = {name: tuple(shape) for name, shape in json.loads(gzip.decompress(
        (KEYS / f"{checkpoint}.json.gz").read_bytes())).items()}
    theirs = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    ours = to_ours(theirs, rows(cfg, dialect))
    assert shapes(ours) == shapes(on_meta(model, cfg).state_dict())
    back = shapes(from_ours(ours, rows(cfg, dialect)))
    assert back == {name: shape for name, shape in keys.items() if name not in LEFT_BEHIND.get(checkpoint, ())}


@pytest.mark.parametrize("preset", TINY_UNETS)
def test_every_tensor_of_a_unet_has_a_row(preset):
    cfg = TINY_UNETS[preset]
    assert {name for row in unet.rows(cfg, "ldm") for name in row.ours} == set(on_meta(UNet, cfg).state_dict())


def test_every_tensor_of_the_vision_tower_has_a_row():
    cfg = CLIPVisionConfig(depth=2)
    tensors = set(on_meta(CLIPVision, cfg).state_dict())
    assert {name for row in clip.vision_rows(cfg, "hf") for name in row.ours} == tensors


@pytest.mark.parametrize(("rows", "cfg", "dialects"), [
    (unet.rows, SDXL, unet.DIALECTS), (vae.rows, VAEConfig(), vae.DIALECTS), (clip.text_rows, CLIP_G, clip.DIALECTS),
    (clip.vision_rows, CLIPVisionConfig(), clip.DIALECTS),
])
def test_no_name_stands_for_two_tensors(rows, cfg, dialects):
    for dialect in dialects:
        names = [name for row in rows(cfg, dialect) for name in row.theirs]
        assert len(names) == len(set(names)), dialect


@pytest.mark.parametrize(("rows", "ours", "ldm"), [
    (unet.rows(SD15, "ldm"), "down.2.attn.1.norm.bias", "input_blocks.8.1.norm.bias"),
    (unet.rows(SD15, "ldm"), "up.1.upsample.weight", "output_blocks.5.2.conv.weight"),
    (unet.rows(SD15, "ldm"), "up.0.upsample.weight", "output_blocks.2.1.conv.weight"),   # a stage without attention
    (vae.rows(VAEConfig(), "ldm"), "decoder.up.0.res.2.conv1.bias", "decoder.up.3.block.2.conv1.bias"),
])
def test_paths_count_as_ldm_counts(rows, ours, ldm):
    assert [row.theirs for row in rows if ours in row.ours] == [(ldm,)]
