"""From prompts to conditions: windows, filling up, notes, and independence from what else is in the batch."""

import logging
from dataclasses import replace

import pytest
import torch

from minisd.clip import CLIPText
from minisd.config import CLIPTextConfig
from minisd.errors import USAGE, MinisdError
from minisd.text import border_note, encode_prompts, tokenizer_of

CFG = CLIPTextConfig(vocab_size=2048, window=12, width=32, depth=2, heads=4)
LONG = "apple banana cherry one two three four five six seven eight nine ten eleven twelve"


@pytest.fixture(scope="module")
def model() -> CLIPText:
    torch.manual_seed(0)
    return CLIPText(CFG).eval().requires_grad_(False)


def test_the_tokenizer_is_made_from_the_config() -> None:
    tokenizer = tokenizer_of(replace(CFG, pad="zero"))
    assert (tokenizer.vocab_size, tokenizer.window, tokenizer.pad) == (2048, 12, "zero")


def test_a_short_prompt_is_one_window(model: CLIPText) -> None:
    tokenizer = tokenizer_of(CFG)
    cond = encode_prompts(model, tokenizer, ["a red apple"])
    assert cond.label is None and cond.concat is None
    assert torch.equal(cond.context, model(torch.tensor([tokenizer.encode("a red apple")])).hidden)


def test_a_long_prompt_is_its_windows_one_after_the_other(model: CLIPText) -> None:
    tokenizer = tokenizer_of(CFG)
    windows = tokenizer.windows(LONG)
    assert len(windows) >= 3
    cond = encode_prompts(model, tokenizer, [LONG], pooled_label=True)
    states = [model(torch.tensor([window])) for window in windows]
    assert torch.equal(cond.context, torch.cat([state.hidden for state in states], dim=1))
    assert cond.label is not None and torch.equal(cond.label, states[0].pooled)


def test_shorter_prompts_are_filled_up_with_empty_windows(model: CLIPText) -> None:
    tokenizer = tokenizer_of(CFG)
    cond = encode_prompts(model, tokenizer, ["apple", LONG, ""], pooled_label=True)
    windows = len(tokenizer.windows(LONG))
    assert cond.context.shape == (3, windows * 12, 32)
    assert cond.label is not None and cond.label.shape == (3, 32)
    empty = model(torch.tensor([tokenizer.encode("")])).hidden
    assert torch.equal(cond.context[2:], empty.repeat(1, windows, 1))
    assert torch.equal(cond.context[:1, 12:], empty.repeat(1, windows - 1, 1))


def test_a_prompt_does_not_depend_on_its_neighbours(model: CLIPText) -> None:
    tokenizer = tokenizer_of(CFG)
    prompts = ["apple", "a red car", "apple", "", "cat on a mat"]
    together = encode_prompts(model, tokenizer, prompts, pooled_label=True)
    assert together.label is not None
    for n, prompt in enumerate(prompts):
        alone = encode_prompts(model, tokenizer, [prompt], pooled_label=True)
        assert alone.label is not None
        assert torch.equal(alone.context[0], together.context[n]), prompt
        assert torch.equal(alone.label[0], together.label[n]), prompt


def test_the_borders_of_a_long_prompt_are_told_once(model: CLIPText, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_of(CFG)
    with caplog.at_level(logging.WARNING):
        encode_prompts(model, tokenizer, ["apple", LONG, LONG])
    assert len(caplog.messages) == 1
    second = tokenizer.decode(tokenizer.windows(LONG)[1])
    assert "windows of 10 tokens" in caplog.messages[0]
    assert f"“{' '.join(second.split()[:3])}…”" in caplog.messages[0]
    assert border_note(tokenizer, "apple") is None


def test_another_models_tokenizer_is_refused(model: CLIPText) -> None:
    with pytest.raises(MinisdError, match="not the text model's") as caught:
        encode_prompts(model, tokenizer_of(CLIPTextConfig()), ["apple"])
    assert caught.value.code == USAGE


def test_no_prompts_are_refused(model: CLIPText) -> None:
    with pytest.raises(MinisdError, match="no prompts"):
        encode_prompts(model, tokenizer_of(CFG), [])


def test_gradients_reach_the_text_model_when_asked_for() -> None:
    model = CLIPText(CFG)
    encode_prompts(model, tokenizer_of(CFG), ["apple", "apple"]).context.sum().backward()
    assert model.token.weight.grad is not None
