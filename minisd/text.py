"""Prompts to conditions: each prompt is read in windows, each window by the text model, and the windows are joined."""

import logging

import torch

from minisd.clip import CLIPText, TextStates
from minisd.config import CLIPTextConfig
from minisd.errors import USAGE, MinisdError
from minisd.samplers.denoiser import Conditioning
from minisd.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Window = tuple[int, ...]
BORDER_WORDS = 3  # how many words a note shows after each border


def tokenizer_of(cfg: CLIPTextConfig) -> Tokenizer:
    """The tokenizer whose ids this text model reads."""
    return Tokenizer(cfg.vocab_size, cfg.window, cfg.pad)


def border_note(tokenizer: Tokenizer, prompt: str) -> str | None:
    """A sentence on where a prompt is split into windows, or None where it fits one."""
    windows = tokenizer.windows(prompt)
    if len(windows) == 1:
        return None
    begins = [" ".join(tokenizer.decode(window).split()[:BORDER_WORDS]) for window in windows[1:]]
    shown = ", ".join(f"“{words}…”" for words in begins[:4]) + (", …" if len(begins) > 4 else "")
    return f"a long prompt is read in {len(windows)} windows of {tokenizer.room} tokens; new ones begin at {shown}"


def read_windows(model: CLIPText, windows: set[Window]) -> dict[Window, TextStates]:
    """Each window -> hidden [1, window, width], pooled [1, width].

    They are read one by one: a matrix product of another batch size rounds otherwise, and a picture must not depend
    on what it was drawn beside.
    """
    device = model.token.weight.device
    return {window: model(torch.tensor([window], device=device)) for window in windows}


def encode_prompts(
    model: CLIPText, tokenizer: Tokenizer, prompts: list[str], pooled_label: bool = False
) -> Conditioning:
    """Prompts -> context [b, k * window, width], and label [b, width] where the UNet takes the pooled text.

    k is what the longest prompt needs; shorter ones are filled up with empty windows. So what is compared or guided
    together (a prompt and its negative) is encoded together, and what should stay apart is encoded apart. The pooled
    state is the first window's. Gradients flow as the caller has set them.
    """
    if tokenizer != tokenizer_of(model.cfg):
        raise MinisdError(
            what="the tokenizer is not the text model's",
            why=f"{tokenizer} but {tokenizer_of(model.cfg)}",
            remedy="make it with minisd.text.tokenizer_of(model.cfg)",
            code=USAGE,
        )
    if not prompts:
        raise MinisdError(what="no prompts", remedy='give at least one; "" is the empty prompt', code=USAGE)
    for note in filter(None, (border_note(tokenizer, prompt) for prompt in dict.fromkeys(prompts))):
        log.warning(note)
    split = [[tuple(window) for window in tokenizer.windows(prompt)] for prompt in prompts]
    count = max(map(len, split))
    empty = tuple(tokenizer.frame([]))
    split = [windows + [empty] * (count - len(windows)) for windows in split]
    states = read_windows(model, {window for windows in split for window in windows})
    context = torch.cat([torch.cat([states[window].hidden for window in windows], dim=1) for windows in split])
    label = torch.cat([states[windows[0]].pooled for windows in split]) if pooled_label else None
    return Conditioning(context, label)
