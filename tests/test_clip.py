"""CLIP's towers: exact sizes, what a token may see, which state is pooled, and the two numberings of CLIP skip."""

from dataclasses import replace

import pytest
import torch
from comparison import assert_close, on_meta, random_model
from torch import nn

from minisd.clip import CLIPText, CLIPVision, activate, with_clip_skip
from minisd.config import CLIP_H, CLIP_L, CLIPTextConfig, CLIPVisionConfig

CFG = CLIPTextConfig(vocab_size=100, window=16, width=32, depth=4, heads=4)
START, END = 98, 99


def ids(*prompts: list[int]) -> torch.Tensor:
    return torch.tensor([[START, *prompt] for prompt in prompts])


@pytest.mark.parametrize(("model", "cfg", "parameters"), [
    (CLIPText, CLIP_L, 123_060_480),
    (CLIPText, replace(CLIP_H, projection_dim=1024), 354_032_640),  # OpenCLIP's, less its logit scale
    (CLIPVision, CLIPVisionConfig(), 303_966_208),
])
def test_parameters(model, cfg, parameters):
    assert sum(p.numel() for p in on_meta(model, cfg).parameters()) == parameters


def test_shapes():
    states = random_model(CLIPText, CFG)(ids([5, 6, END], [7, END, END]))
    assert states.hidden.shape == (2, 4, 32) and states.pooled.shape == (2, 32)
    states = random_model(CLIPText, replace(CFG, projection_dim=12))(ids([5, END]))
    assert states.hidden.shape == (1, 3, 32) and states.pooled.shape == (1, 12)


def test_a_token_sees_only_what_came_before():
    text = random_model(CLIPText, CFG)
    one, other = text(ids([5, 6, 7, END])).hidden, text(ids([5, 6, 8, END])).hidden
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.equal(one[:, 3], other[:, 3]) and not torch.equal(one[:, 4], other[:, 4])


def test_order_matters():
    text = random_model(CLIPText, CFG)
    assert not torch.equal(text(ids([5, 6, END])).pooled, text(ids([6, 5, END])).pooled)


def test_the_state_of_the_first_end_token_is_pooled_whatever_the_padding():
    text = random_model(CLIPText, CFG)
    padded_with_end, padded_with_zero = text(ids([5, 6, END, END, END])), text(ids([5, 6, END, 0, 0]))
    assert torch.equal(padded_with_end.pooled, padded_with_end.hidden[:, 3])
    assert torch.equal(padded_with_zero.pooled, padded_with_zero.hidden[:, 3])
    assert torch.equal(padded_with_end.pooled, padded_with_zero.pooled)


def test_the_end_token_is_pooled_and_not_a_word_added_after_it():
    text = random_model(CLIPText, CFG)
    text.token = nn.Embedding.from_pretrained(torch.cat([text.token.weight, torch.randn(2, 32)]))
    states = text(ids([5, 100, 101, 6, END, END]))
    assert torch.equal(states.pooled, states.hidden[:, 5])


def test_projection_is_of_the_pooled_state_only():
    cfg = replace(CFG, projection_dim=12)
    text = random_model(CLIPText, cfg)
    states = text(ids([5, END]))
    assert_close("pooled", states.pooled, states.hidden[:, 2] @ text.projection.weight.T, 1e-6)


@pytest.mark.parametrize("skip", range(3))
def test_skipping_layers_is_not_having_them(skip):
    whole = random_model(CLIPText, replace(CFG, skipped_layers=skip))
    short = CLIPText(replace(CFG, depth=4 - skip))
    short.load_state_dict({name: t for name, t in whole.state_dict().items() if name in short.state_dict()})
    assert torch.equal(whole(ids([5, 6, END])).hidden, short(ids([5, 6, END])).hidden)


def test_the_pooled_state_always_comes_from_the_last_layer():
    weights = random_model(CLIPText, CFG).state_dict()
    pooled = []
    for cfg in (CFG, replace(CFG, skipped_layers=2), replace(CFG, skipped_layers=1, final_norm=False)):
        text = CLIPText(cfg)
        text.load_state_dict(weights)
        pooled.append(text(ids([5, 6, END])).pooled)
    assert torch.equal(pooled[0], pooled[1]) and torch.equal(pooled[0], pooled[2])


def test_the_final_norm_can_be_left_out():
    normed, plain = random_model(CLIPText, CFG), random_model(CLIPText, replace(CFG, final_norm=False))
    prompt = ids([5, 6, END])
    assert torch.equal(normed(prompt).hidden, normed.norm_out(plain(prompt).hidden))


def test_both_numberings_of_clip_skip():
    assert with_clip_skip(CFG, 1, "a1111") == with_clip_skip(CFG, 0, "diffusers") == CFG
    assert with_clip_skip(CFG, 2, "a1111") == with_clip_skip(CFG, 1, "diffusers") == replace(CFG, skipped_layers=1)
    with pytest.raises(ValueError, match="-1 skipped layers of 4"):
        with_clip_skip(CFG, 0, "a1111")
    with pytest.raises(ValueError, match="4 skipped layers of 4: at least one must stay"):
        with_clip_skip(CFG, 4, "diffusers")


def test_more_tokens_than_the_window_are_refused():
    with pytest.raises(ValueError, match="17 tokens but a window of 16: split the prompt into windows"):
        random_model(CLIPText, CFG)(torch.zeros(1, 17, dtype=torch.long))


def test_activations():
    x = torch.linspace(-3, 3, 13)
    assert torch.equal(activate(x, "gelu"), nn.GELU()(x))
    assert_close("quick GELU", activate(x, "quick_gelu"), x / (1 + (-1.702 * x).exp()), 1e-6)
    assert not torch.equal(activate(x, "gelu"), activate(x, "quick_gelu"))


def test_the_vision_tower_reads_its_class_token():
    cfg = CLIPVisionConfig(image_size=28, patch=14, width=32, depth=2, heads=4, projection_dim=12)
    vision = random_model(CLIPVision, cfg)
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    assert vision(x).shape == (2, 12) and vision.position.weight.shape == (5, 32)
    assert not torch.equal(vision(x)[0], vision(x.flip(3))[0]), "patches have places"
