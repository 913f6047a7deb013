"""Prompts to conditions: each reading is split into windows, each window read by the text models, and all joined."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from minisd.clip import CLIPText, TextStates
from minisd.config import CLIPTextConfig
from minisd.drawing.tags import TAG
from minisd.errors import USAGE, MinisdError
from minisd.prompt import Reading, read
from minisd.samplers.denoiser import Conditioning
from minisd.tokenizer import Tokenizer

log = logging.getLogger(__name__)

BORDER_WORDS, SHOWN, SPANS = 3, 4, 8              # how much a note or an explanation shows before it says "…"
AND = re.compile(r"\bAND\b")
ROUNDING = 1e-6                                   # a mean below this part of the values themselves is noise

Weighed = tuple[int, float]                       # a token and its weight


class Window(NamedTuple):
    """What a text model reads at once: ids with start, end and padding, which all weigh 1."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def tokenizer_of(cfg: CLIPTextConfig) -> Tokenizer:
    """The tokenizer whose ids this text model reads."""
    return Tokenizer(cfg.vocab_size, cfg.window, cfg.pad, cfg.words)


# ---------------------------------------------------------------- windows
def split(tokenizer: Tokenizer, reading: Reading) -> list[list[Weighed]]:
    """The tokens of each window: full but the last of a part, and at least one window to a part (BREAK ends one).

    Pieces of other weights are tokenized apart, as in A1111; those of one weight are one piece. A1111 also moves a
    border back to a comma within 20 tokens; here it stays where the window is full.
    """
    found = []
    for part in reading:
        tokens = [(token, piece.weight) for piece in part for token in tokenizer.tokenize(piece.text)]
        found += [tokens[start:start + tokenizer.room] for start in range(0, max(len(tokens), 1), tokenizer.room)]
    return found


def framed(tokenizer: Tokenizer, tokens: Sequence[Weighed]) -> Window:
    """One window of at most as many tokens as it has room for."""
    weights = [1.0] * tokenizer.window
    weights[1:1 + len(tokens)] = [weight for _, weight in tokens]
    return Window(tuple(tokenizer.frame([token for token, _ in tokens])), tuple(weights))


def window_count(tokenizers: Iterable[Tokenizer], prompts: Sequence[str], steps: int) -> int:
    """How many windows the longest of these prompts takes at any time."""
    readings = {reading for prompt in prompts for reading in read(prompt).readings(steps)}
    return max((len(split(tokenizer, reading)) for tokenizer in tokenizers for reading in readings), default=1)


def border_note(tokenizer: Tokenizer, reading: Reading) -> str | None:
    """A sentence on where a prompt is split into windows, or None where it fits one."""
    _, *others = split(tokenizer, reading)
    if not others:
        return None
    begins = [" ".join(tokenizer.decode(token for token, _ in tokens).split()[:BORDER_WORDS]) for tokens in others]
    return (f"a long prompt is read in {len(others) + 1} windows of {tokenizer.room} tokens; "
            f"new ones begin at {_quoted(begins)}")


def notes(prompt: str) -> list[str]:
    """Sentences on what is read otherwise than A1111 would: brackets that have no partner, AND, and tags."""
    loose = [prompt[at:at + 12] for at in read(prompt).loose]
    found = [rf"a bracket without a partner stands for itself, as \( and \[ do: {_quoted(loose)}"] if loose else []
    found += ["AND is read as a word: diffusions are not composed"] if AND.search(prompt) else []
    return [*found, "a <lora:...> is read as words here: minisd.add_lora attaches one"] if TAG.search(prompt) else found


def _quoted(begins: Sequence[str]) -> str:
    return ", ".join(f"“{_printable(words)}…”" for words in begins[:SHOWN]) + (", …" if len(begins) > SHOWN else "")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


# ---------------------------------------------------------------- states
def tell(models: Sequence[CLIPText], prompts: Sequence[str], steps: int, pooled_label: bool) -> list[Conditioning]:
    """What the network is told in each of so many steps, [prompts, k * window, widths]; steps alike share one.

    Whatever is said at any time is encoded once, and all of it is equally long.
    """
    for note in dict.fromkeys(chain.from_iterable(map(notes, prompts))):
        log.warning(note)
    times = list(zip(*(read(prompt).readings(steps) for prompt in prompts), strict=True))
    row = {reading: n for n, reading in enumerate(dict.fromkeys(chain.from_iterable(times)))}
    everything = encode(models, list(row), pooled_label)
    told = {time: everything.rows([row[reading] for reading in time]) for time in dict.fromkeys(times)}
    return [told[time] for time in times]


def encode(models: Sequence[CLIPText], readings: Sequence[Reading], pooled_label: bool = False) -> Conditioning:
    """Readings -> context [b, k * window, widths], and label [b, width] where the UNet takes the pooled text.

    k is what the longest reading needs; shorter ones are filled up with empty windows. So what is compared or guided
    together (a prompt and its negative) is encoded together, and what should stay apart is encoded apart. Several
    models' states stand side by side; the label is the last model's pooled state of the first window. Gradients flow
    as the caller has set them.
    """
    if not readings:
        raise MinisdError(what="no prompts", remedy='give at least one; "" is the empty prompt', code=USAGE)
    tokenizers = [tokenizer_of(model.cfg) for model in models]
    borders = (border_note(tokenizer, reading) for reading in dict.fromkeys(readings) for tokenizer in tokenizers)
    for note in dict.fromkeys(filter(None, borders)):
        log.warning(note)
    count = max(len(split(tokenizer, reading)) for tokenizer in tokenizers for reading in readings)
    each = [_encode(model, tokenizer, readings, count) for model, tokenizer in zip(models, tokenizers, strict=True)]
    context = torch.cat([states.hidden for states in each], dim=-1)
    return Conditioning(context, each[-1].pooled if pooled_label else None)


def _encode(model: CLIPText, tokenizer: Tokenizer, readings: Sequence[Reading], count: int) -> TextStates:
    """hidden [b, count * window, width]; pooled [b, width] of each reading's first window."""
    rows = []
    for reading in readings:
        tokens = split(tokenizer, reading)
        rows.append([framed(tokenizer, some) for some in tokens + [[]] * (count - len(tokens))])
    states = read_windows(model, dict.fromkeys(chain.from_iterable(rows)))
    hidden = torch.cat([torch.cat([states[window].hidden for window in row], dim=1) for row in rows])
    return TextStates(hidden, torch.cat([states[row[0]].pooled for row in rows]))


def read_windows(model: CLIPText, windows: Iterable[Window]) -> dict[Window, TextStates]:
    """Each window -> hidden [1, window, width], weighed; pooled [1, width], which no weight touches.

    They are read one by one: a matrix product of another batch size rounds otherwise, and a picture must not depend
    on what it was drawn beside.
    """
    windows, device = list(windows), model.token.weight.device
    states = {ids: model(torch.tensor([ids], device=device)) for ids in dict.fromkeys(one.ids for one in windows)}
    return {one: TextStates(weigh(states[one.ids].hidden, one.weights), states[one.ids].pooled) for one in windows}


def weigh(hidden: Tensor, weights: Sequence[float]) -> Tensor:
    """States [1, n, width] of n tokens times their weights, and all of them by one factor back to the mean they had.

    This is A1111's emphasis "Original", window by window. Other programs differ, and so do their pictures: A1111's
    "No norm" leaves the mean as it comes, ComfyUI moves each state away from the empty prompt's, compel towards what
    is said without the words. Where all weigh 1, nothing is touched; a mean that is but rounding is left as it comes.
    """
    if all(weight == 1 for weight in weights):
        return hidden
    before = hidden.float()
    after = before * torch.tensor(weights, device=hidden.device)[:, None]
    means = torch.stack([before.mean(), after.mean()])
    if (means.abs() > ROUNDING * before.abs().mean()).all():
        after = after * (means[0] / means[1])
    return after.to(hidden.dtype)


# ---------------------------------------------------------------- what is read, shown
def explain(prompt: str, tokenizers: Sequence[Tokenizer], steps: int) -> str:
    """What is read in a prompt, as lines: in which steps, in which windows, by which tokens, of which weights.

    Text encoders that read it alike are shown once.
    """
    readings = read(prompt).readings(steps)
    lines = notes(prompt)
    for reading in dict.fromkeys(readings):
        lines += ["", spans([step for step, one in enumerate(readings, start=1) if one == reading]) + f" of {steps}"]
        shown: dict[tuple[str, ...], list[str]] = {}
        for number, tokenizer in enumerate(tokenizers, start=1):
            shown.setdefault(tuple(_token_lines(tokenizer, reading)), []).append(str(number))
        for tokens, numbers in shown.items():
            lines += [f"text encoder {', '.join(numbers)}"] * (len(shown) > 1) + list(tokens)
    return "\n".join(lines).strip()


def spans(steps: Sequence[int]) -> str:
    """Rising numbers in short: "steps 1 to 10", "steps 1, 3, 5 and 3 more"."""
    runs = [[step for _, step in run] for _, run in groupby(enumerate(steps), lambda pair: pair[1] - pair[0])]
    shown = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:SPANS]]
    more = sum(map(len, runs[SPANS:]))
    return f"step{'s' * (len(steps) > 1)} {', '.join(shown)}" + (f" and {more} more" if more else "")


def _token_lines(tokenizer: Tokenizer, reading: Reading) -> Iterator[str]:
    """Each window, its tokens, and their weights where they are not 1."""
    windows = split(tokenizer, reading)
    learnt = {token: word for word, tokens in tokenizer.learnt.items() for token in tokens}
    for number, tokens in enumerate(windows, start=1):
        yield f"  window {number} of {len(windows)}, {len(tokens)} of {tokenizer.room} tokens"
        for token, weight in tokens:
            spelt = _printable(learnt.get(token) or tokenizer.decode([token])) or "(start or end)"
            yield f"  {token:7}  {spelt:16}{'' if weight == 1 else f' × {weight:.4g}'}".rstrip()
