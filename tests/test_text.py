"""From prompts to conditions: windows, weights, filling up, notes, and independence from what else is in the batch."""

import logging
from dataclasses import replace

import pytest
import torch

from minisd.clip import CLIPText
from minisd.config import CLIPTextConfig
from minisd.errors import USAGE, MinisdError
from minisd.prompt import Reading, read
from minisd.text import (
    border_note,
    encode,
    explain,
    notes,
    spans,
    split,
    tell,
    tokenizer_of,
    weigh,
    window_count,
)

CFG = CLIPTextConfig(vocab_size=2048, window=12, width=32, depth=2, heads=4)
LONG = "apple banana cherry one two three four five six seven eight nine ten eleven twelve"
TOKENIZER = tokenizer_of(CFG)


@pytest.fixture(scope="module")
def model() -> CLIPText:
    torch.manual_seed(0)
    model = CLIPText(CFG).eval().requires_grad_(False)
    model.norm_out.bias += 0.3                    # as after training: no state has a mean of 0
    return model


def said(prompt: str) -> Reading:
    return read(prompt).readings(1)[0]


def states(model: CLIPText, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).hidden


def test_the_tokenizer_is_made_from_the_config() -> None:
    tokenizer = tokenizer_of(replace(CFG, pad="zero"))
    assert (tokenizer.vocab_size, tokenizer.window, tokenizer.pad) == (2048, 12, "zero")


# ---------------------------------------------------------------- windows
def test_a_short_prompt_is_one_window(model: CLIPText) -> None:
    cond = encode([model], [said("a red apple")])
    assert cond.label is None and cond.concat is None
    assert torch.equal(cond.context, states(model, TOKENIZER.encode("a red apple")))


def test_a_long_prompt_is_its_windows_one_after_the_other(model: CLIPText) -> None:
    windows = TOKENIZER.windows(LONG)
    assert len(windows) >= 3
    cond = encode([model], [said(LONG)], pooled_label=True)
    each = [model(torch.tensor([window])) for window in windows]
    assert torch.equal(cond.context, torch.cat([one.hidden for one in each], dim=1))
    assert cond.label is not None and torch.equal(cond.label, each[0].pooled)


def test_a_break_begins_a_new_window(model: CLIPText) -> None:
    cond = encode([model], [said("apple BREAK banana")])
    halves = [states(model, TOKENIZER.encode(word)) for word in ("apple", "banana")]
    assert torch.equal(cond.context, torch.cat(halves, dim=1))
    assert len(split(TOKENIZER, said("BREAK apple"))) == 2 and len(split(TOKENIZER, said("apple BREAK"))) == 1
    assert len(split(TOKENIZER, said(f"apple BREAK {LONG}"))) == 1 + len(TOKENIZER.windows(LONG))


def test_weights_do_not_move_the_borders() -> None:
    plain, weighed = split(TOKENIZER, said(LONG)), split(TOKENIZER, said(LONG.replace("five", "(five:1.3)")))
    assert [[token for token, _ in one] for one in plain] == [[token for token, _ in one] for one in weighed]
    assert sorted({weight for one in weighed for _, weight in one}) == [1, 1.3]


def test_shorter_prompts_are_filled_up_with_empty_windows(model: CLIPText) -> None:
    cond = encode([model], [said("apple"), said(LONG), said("")], pooled_label=True)
    windows = len(TOKENIZER.windows(LONG))
    assert cond.context.shape == (3, windows * 12, 32)
    assert cond.label is not None and cond.label.shape == (3, 32)
    empty = states(model, TOKENIZER.encode(""))
    assert torch.equal(cond.context[2:], empty.repeat(1, windows, 1))
    assert torch.equal(cond.context[:1, 12:], empty.repeat(1, windows - 1, 1))


def test_a_prompt_does_not_depend_on_its_neighbours(model: CLIPText) -> None:
    readings = [said(prompt) for prompt in ("apple", "a (red:1.4) car", "apple", "", "cat on a mat", "a red car")]
    together = encode([model], readings, pooled_label=True)
    assert together.label is not None
    for n, reading in enumerate(readings):
        alone = encode([model], [reading], pooled_label=True)
        assert alone.label is not None
        assert torch.equal(alone.context[0], together.context[n]), reading
        assert torch.equal(alone.label[0], together.label[n]), reading


def test_no_prompts_are_refused(model: CLIPText) -> None:
    with pytest.raises(MinisdError, match="no prompts") as caught:
        encode([model], [])
    assert caught.value.code == USAGE


def test_gradients_reach_the_text_model_when_asked_for() -> None:
    model = CLIPText(CFG)
    encode([model], [said("(apple)"), said("apple")]).context[:, 1, 0].sum().backward()
    assert model.token.weight.grad is not None and model.token.weight.grad.any()


# ---------------------------------------------------------------- weights
def test_weights_scale_the_states_and_the_mean_comes_back(model: CLIPText) -> None:
    """In double precision, and with the places counted by hand."""
    ids = TOKENIZER.encode("a red car on a road")
    assert len(TOKENIZER.tokenize("a red car on a road")) == 6
    hidden = states(model, ids).double()
    weights = torch.ones(12, dtype=torch.float64)
    weights[2], weights[3], weights[6] = 1.3, 1.3 * 1.1, 1 / 1.1
    expected = hidden * weights[None, :, None]
    expected *= hidden.mean() / expected.mean()
    context = encode([model], [said("a (red (car):1.3) on a [road]")]).context
    assert torch.allclose(context.double(), expected, rtol=1e-5, atol=1e-6)
    assert context.mean().item() == pytest.approx(hidden.mean().item(), rel=1e-4)
    assert not torch.allclose(context, hidden.float(), rtol=0.05)


def test_a_prompt_of_weight_one_is_untouched(model: CLIPText) -> None:
    plain = encode([model], [said("a red apple")]).context
    for prompt in ("a (red:1) apple", "a [(red)] apple", "(a red apple:1.0)", "a red (apple:1)", r"a red apple"):
        assert torch.equal(encode([model], [said(prompt)]).context, plain), prompt


def test_the_mean_is_kept_in_each_window_by_itself(model: CLIPText) -> None:
    plain = encode([model], [said(f"apple BREAK {LONG}")]).context
    weighed = encode([model], [said(f"(apple:2) BREAK {LONG}")]).context
    assert torch.equal(plain[:, 12:], weighed[:, 12:]) and not torch.equal(plain[:, :12], weighed[:, :12])


def test_the_pooled_state_is_not_weighed(model: CLIPText) -> None:
    plain, weighed = (encode([model], [said(prompt)], pooled_label=True) for prompt in ("apple", "(apple:2)"))
    assert plain.label is not None and weighed.label is not None
    assert torch.equal(plain.label, weighed.label) and not torch.equal(plain.context, weighed.context)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_keep_the_dtype(dtype: torch.dtype) -> None:
    hidden = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    weighed = weigh(hidden, [1.0, 1.5, 1.0])
    assert weighed.dtype == dtype
    exact = weigh(hidden.float(), [1.0, 1.5, 1.0])
    assert torch.equal(weighed, exact.to(dtype))


def test_a_mean_that_is_lost_is_left_as_it_comes() -> None:
    """Of states that are centred, as of a model fresh from the initialisation, and of weights that cancel it."""
    centred = torch.nn.functional.layer_norm(torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)), [64])
    weights = [1.0, 1.5, 1.0, 0.5, 1.0]
    assert torch.equal(weigh(centred, weights), centred * torch.tensor(weights)[:, None])
    assert torch.equal(weigh(torch.ones(1, 2, 4), [1.0, -1.0])[0, :, 0], torch.tensor([1.0, -1.0]))


# ---------------------------------------------------------------- several text encoders
def test_several_models_stand_side_by_side_and_the_last_is_pooled(model: CLIPText) -> None:
    torch.manual_seed(1)
    second = CLIPText(replace(CFG, width=48, pad="zero", projection_dim=20)).eval().requires_grad_(False)
    prompt = said(f"a (red:1.2) apple BREAK {LONG}")
    both = encode([model, second], [prompt, said("")], pooled_label=True)
    one, other = (encode([each], [prompt, said("")], pooled_label=True) for each in (model, second))
    assert torch.equal(both.context, torch.cat([one.context, other.context], dim=-1))
    assert both.label is not None and other.label is not None and torch.equal(both.label, other.label)


def test_models_of_other_vocabularies_are_filled_up_to_each_other(model: CLIPText) -> None:
    """Fewer merges make more tokens, here a window more."""
    torch.manual_seed(1)
    small = CLIPText(replace(CFG, vocab_size=600)).eval().requires_grad_(False)
    prompt, tokenizers = "banana cherry apple car", [TOKENIZER, tokenizer_of(small.cfg)]
    assert [len(split(tokenizer, said(prompt))) for tokenizer in tokenizers] == [1, 2]
    assert window_count(tokenizers, [prompt], 1) == 2
    context = encode([model, small], [said(prompt)]).context
    assert context.shape == (1, 24, 64)
    assert torch.equal(context[:, 12:, :32], states(model, TOKENIZER.encode("")))


# ---------------------------------------------------------------- times
def test_what_is_told_changes_from_step_to_step(model: CLIPText) -> None:
    told = tell([model], ["", "[apple:banana:2]", "a [cat|dog]"], 4, pooled_label=True)
    fruits, pets = ["apple", "apple", "banana", "banana"], ["a cat", "a dog", "a cat", "a dog"]
    for step, cond in enumerate(told):
        plain = encode([model], [said(prompt) for prompt in ("", fruits[step], pets[step])], pooled_label=True)
        assert plain.label is not None and cond.label is not None
        assert torch.equal(cond.context, plain.context) and torch.equal(cond.label, plain.label)


def test_steps_that_are_alike_share_what_is_told(model: CLIPText) -> None:
    assert len({id(cond) for cond in tell([model], ["a", "b"], 9, False)}) == 1
    told = tell([model], ["[a|b]", "[c:d:4]"], 9, False)
    assert len({id(cond) for cond in told}) == 4 and told[0] is told[2] and told[4] is told[8]


def test_each_thing_is_read_once(model: CLIPText) -> None:
    read_ids: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(lambda module, args: read_ids.append(tuple(args[0][0].tolist())))
    tell([model], ["", "a [cat|dog]", "a cat", "a (cat:1.2)", "a cat"], 20, False)
    handle.remove()
    assert sorted(read_ids) == sorted(tuple(TOKENIZER.encode(text)) for text in ("", "a cat", "a dog"))


def test_all_times_are_equally_long(model: CLIPText) -> None:
    told = tell([model], ["", f"[apple:{LONG}:1]"], 2, False)
    windows = len(TOKENIZER.windows(LONG))
    assert [cond.context.shape for cond in told] == [(2, windows * 12, 32)] * 2
    assert window_count([TOKENIZER], [f"[apple:{LONG}:1]"], 2) == windows
    assert window_count([TOKENIZER], [f"[apple:{LONG}:2]"], 2) == 1, "it never comes to that"
    assert window_count([TOKENIZER], ["a"], 0) == 1


# ---------------------------------------------------------------- what is said of it
def test_the_borders_of_a_long_prompt_are_told_once(model: CLIPText, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encode([model, model], [said("apple"), said(LONG), said(LONG)])
    assert len(caplog.messages) == 1
    second = TOKENIZER.decode(TOKENIZER.windows(LONG)[1])
    assert "windows of 10 tokens" in caplog.messages[0]
    assert f"“{' '.join(second.split()[:3])}…”" in caplog.messages[0]
    assert border_note(TOKENIZER, said("apple")) is None


def test_brackets_without_a_partner_are_told(model: CLIPText, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tell([model], ["", "a (red apple"], 3, False)
    (message,) = caplog.messages
    assert "without a partner" in message and "“(red apple…”" in message and r"\(" in message
    assert notes("a (red) apple") == []
    (note,) = notes("( " * 1000)
    assert note.endswith(", …") and len(note) < 200


def test_a_prompt_that_a1111_would_compose_is_told() -> None:
    assert notes("a cat AND a dog") == ["AND is read as a word: diffusions are not composed"]
    assert notes("a cat and a DOG, SAND") == [] and len(notes("(a AND b")) == 2


def test_an_explanation_shows_tokens_weights_windows_and_times() -> None:
    assert explain("a (red:1.25) [car:road:0.5] BREAK dog", [TOKENIZER], 4) == "\n".join([
        "steps 1 to 2 of 4",
        "  window 1 of 2, 3 of 10 tokens",
        "      320  a",
        "      736  red              × 1.25",
        "     1615  car",
        "  window 2 of 2, 1 of 10 tokens",
        "     1929  dog",
        "",
        "steps 3 to 4 of 4",
        "  window 1 of 2, 3 of 10 tokens",
        "      320  a",
        "      736  red              × 1.25",
        "     1759  road",
        "  window 2 of 2, 1 of 10 tokens",
        "     1929  dog"])


def test_an_explanation_shows_only_what_can_be_printed() -> None:
    text = explain("\x1b[31m \x07 é😀 <|endoftext|> <|startoftext|>", [TOKENIZER], 1)
    assert all(line.isprintable() for line in text.splitlines())
    assert text.count("(start or end)") == 2


def test_an_explanation_numbers_the_encoders_that_differ() -> None:
    alike = explain("banana", [TOKENIZER, tokenizer_of(replace(CFG, pad="zero"))], 1)
    assert alike == explain("banana", [TOKENIZER], 1)
    other = explain("banana", [TOKENIZER, tokenizer_of(replace(CFG, vocab_size=600)), TOKENIZER], 1)
    assert "text encoder 1, 3\n" in other and "text encoder 2\n" in other


def test_an_explanation_names_loose_brackets_and_an_empty_prompt() -> None:
    assert explain("(a", [TOKENIZER], 1).startswith("a bracket without a partner")
    assert explain("", [TOKENIZER], 1) == "step 1 of 1\n  window 1 of 1, 0 of 10 tokens"


@pytest.mark.parametrize(("steps", "text"), [
    ([1], "step 1"), ([1, 2, 3], "steps 1 to 3"), ([1, 3, 4, 7], "steps 1, 3 to 4, 7"),
    (list(range(1, 30, 2)), "steps 1, 3, 5, 7, 9, 11, 13, 15 and 7 more")])
def test_steps_in_short(steps: list[int], text: str) -> None:
    assert spans(steps) == text
