"""Configs: refused when their numbers disagree, and small enough to print, compare and write down."""

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest

from minisd.config import (
    BK_BASE,
    BK_SMALL,
    BK_TINY,
    CLIP_H,
    CLIP_L,
    PRESETS,
    SD15,
    SD15_MIDLESS,
    SD21,
    SDXL,
    TINY_MODEL,
    ModelConfig,
    UNetConfig,
    VAEConfig,
)


@pytest.mark.parametrize(("change", "words"), [
    ({"widths": (320, 640, 1280), "depths": (1, 1)}, "3 widths but 2 depths: one of each per stage"),
    ({"depths": (1, 1, 1)}, "4 widths but 3 depths"),
    ({"heads": None}, "heads=None and head_dim=None: give exactly one of them"),
    ({"head_dim": 64}, "heads=8 and head_dim=64: give exactly one of them"),
    ({"widths": (320, 640, 1280, 1300)}, "width 1300 is not a multiple of 32 groups"),
    ({"heads": 7}, "width 320 is not a multiple of"),
    ({"mid_depth": 0}, "mid_depth=0: at least 1, or None for no mid block"),
])
def test_numbers_that_disagree_are_refused_in_words(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SD15, **change)


@pytest.mark.parametrize("skipped", [-1, 12, 13])
def test_at_least_one_layer_of_the_text_tower_stays(skipped):
    with pytest.raises(ValueError, match=f"{skipped} skipped layers of 12"):
        replace(CLIP_L, skipped_layers=skipped)


def test_the_defaults_are_those_of_sd15():
    assert UNetConfig() == SD15 == PRESETS["sd15"] == ModelConfig().unet
    assert (ModelConfig().text, ModelConfig().latent_scale, ModelConfig().prediction) == ((CLIP_L,), 0.18215, "epsilon")


@pytest.mark.parametrize(("preset", "parent", "differences"), [
    (SD15_MIDLESS, SD15, {"mid_depth"}),
    (PRESETS["sd15-inpaint"], SD15, {"in_channels"}),
    (SD21, SD15, {"heads", "head_dim", "context_dim", "linear_proj"}),
    (SDXL, SD21, {"widths", "depths", "mid_depth", "context_dim", "label_dim"}),
    (BK_BASE, SD15, {"layers"}),
    (BK_SMALL, BK_BASE, {"mid_depth"}),
    (BK_TINY, BK_SMALL, {"widths", "depths"}),
    (CLIP_H, CLIP_L, {"width", "depth", "heads", "activation", "skipped_layers", "pad"}),
])
def test_presets_differ_where_they_should(preset, parent, differences):
    changed = {f.name for f in fields(parent) if asdict(preset)[f.name] != asdict(parent)[f.name]}
    assert changed == differences


def test_heads():
    assert [SD15.heads_at(width) for width in SD15.widths] == [8, 8, 8, 8]
    assert [SD21.heads_at(width) for width in SD21.widths] == [5, 10, 20, 20]


def test_pixels_per_latent():
    assert VAEConfig().factor == 8
    assert VAEConfig(widths=(32, 64)).factor == 2


def test_configs_are_values():
    assert len(set(PRESETS.values())) == len(PRESETS)
    assert replace(SD15, in_channels=9) == PRESETS["sd15-inpaint"]
    with pytest.raises(FrozenInstanceError):
        SD15.layers = 3


def test_configs_can_be_written_down():
    assert json.loads(json.dumps(asdict(TINY_MODEL)))["unet"]["widths"] == [32, 64, 64, 64]
    assert "widths=(320, 640, 1280, 1280)" in repr(SD15)
