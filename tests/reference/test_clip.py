"""CLIP's towers beside transformers', layer by layer."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from comparison import assert_close, norms, random_model, with_eps
from conftest import TOLERANCE
from torch import nn

from minisd.clip import CLIPText, CLIPVision, with_clip_skip
from minisd.config import TINY_TEXT, CLIPTextConfig, CLIPVisionConfig

pytestmark = pytest.mark.parity
pytest.importorskip("transformers", reason="compares with transformers: pip install minisd[reference]")
from reference.peers import text_like, vision_like  # noqa: E402
from reference.side_by_side import SMALL, compare_texts, compare_visions, normal, words  # noqa: E402

TOL = TOLERANCE[torch.float32]
TEXT = CLIPTextConfig(vocab_size=1000, width=32, depth=4, heads=4)
TEXTS = {  # in miniature
    "SD1.5": TEXT,
    "SD2.1": replace(TEXT, activation="gelu", skipped_layers=1),
    "SDXL's second": replace(TEXT, activation="gelu", skipped_layers=1, final_norm=False, projection_dim=24),
    "tiny": TINY_TEXT,
}
VISION = CLIPVisionConfig(image_size=56, patch=14, width=32, depth=3, heads=4, projection_dim=24)


@cache
def text_pair(cfg: CLIPTextConfig, gain: float = 1.0) -> tuple[nn.Module, nn.Module]:
    ours = random_model(CLIPText, cfg, gain=gain)
    return ours, text_like(ours)


@cache
def vision_pair(cfg: CLIPVisionConfig, gain: float = 1.0) -> tuple[nn.Module, nn.Module]:
    ours = random_model(CLIPVision, cfg, gain=gain)
    ours.norm_in.weight *= gain  # its output is what the layers add to: a small gain must reach it too
    ours.norm_in.bias *= gain
    return ours, vision_like(ours)


@pytest.mark.parametrize("gain", [1.0, SMALL], ids=["ordinary", "small activations"])
@pytest.mark.parametrize("name", TEXTS)
def test_every_layer_of_the_text_tower(name, gain, measured):
    ours, theirs = text_pair(TEXTS[name], gain)
    measured("CLIP text beside transformers", compare_texts(ours, theirs, words(ours.cfg), TOL))


def test_every_layer_in_bfloat16(measured):
    ours = random_model(CLIPText, TEXT).bfloat16()
    difference = compare_texts(ours, text_like(ours), words(TEXT), TOLERANCE[torch.bfloat16])
    measured("CLIP text beside transformers, bfloat16", difference)


def test_fewer_tokens_than_the_window():
    compare_texts(*text_pair(TEXT), words(TEXT, tokens=9), TOL)


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("skip", range(4))
def test_clip_skip_as_diffusers_counts(skip, final_norm):
    """Its pipelines take hidden_states[-(clip_skip + 1)], then SD's apply the final norm and SDXL's do not."""
    ours, theirs = text_pair(replace(with_clip_skip(TEXT, skip, "diffusers"), final_norm=final_norm))
    ids = words(TEXT)
    hidden = theirs(ids, output_hidden_states=True).hidden_states[-(skip + 1)]
    expected = theirs.final_layer_norm(hidden) if final_norm else hidden
    assert_close("hidden", ours(ids).hidden, expected, TOL)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("gain", [1.0, SMALL], ids=["ordinary", "small activations"])
def test_every_layer_of_the_vision_tower(activation, gain, measured):
    ours, theirs = vision_pair(replace(VISION, activation=activation), gain)
    pixels = normal(2, 3, 56, 56, gain=gain)
    measured("CLIP vision beside transformers", compare_visions(ours, theirs, pixels, TOL))


def test_the_wrong_activation_shows_and_is_named():
    ours, theirs = text_pair(TEXT)
    wrong = CLIPText(replace(TEXT, activation="gelu")).requires_grad_(False)
    wrong.load_state_dict(ours.state_dict())
    with pytest.raises(AssertionError, match=r"^layers\.0\.out_proj: largest difference"):
        compare_texts(wrong, theirs, words(TEXT), TOL)


@pytest.mark.parametrize("norm", ["layers.0.norm1", "layers.2.norm2", "norm_out"])
def test_a_wrong_eps_shows_and_is_named_in_the_text_tower(norm):
    ours, theirs = text_pair(TEXT, SMALL)
    assert norms(ours)[norm] == 1e-5
    with pytest.raises(AssertionError, match=f"^{re.escape(norm)}: largest difference"):
        compare_texts(with_eps(ours, norm, 1e-6), theirs, words(TEXT), tolerance=1e-2)


@pytest.mark.parametrize("norm", ["norm_in", "layers.0.norm1", "layers.2.norm2", "norm_out"])
def test_a_wrong_eps_shows_and_is_named_in_the_vision_tower(norm):
    ours, theirs = vision_pair(VISION, SMALL)
    with pytest.raises(AssertionError, match=f"^{re.escape(norm)}: largest difference"):
        compare_visions(with_eps(ours, norm, 1e-6), theirs, normal(2, 3, 56, 56, gain=SMALL), tolerance=1e-2)
