"""Textual inversion (Gal et al., arXiv 2208.01618): a new word's vectors learn, and nothing else can move."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from minisd.config import Word
from minisd.errors import USAGE, MinisdError
from minisd.pipeline import StableDiffusion
from minisd.text import tokenizer_of
from minisd.train.tasks.tuned import Learnt
from minisd.train.tuning import TextualInversionTask
from minisd.words import learn
from weights_convert.embedding import write_embedding


def learnt(sd: StableDiffusion, options: TextualInversionTask, metadata: Mapping[str, str]) -> Learnt:
    """Rows of their own for the word, taken home as a small file that bears its name."""
    text = sd.text[0]
    if text.cfg.words:
        raise MinisdError("the model has learnt words before", options.word, ", ".join(w.text for w in text.cfg.words),
                          "begin from a model without, or they would move as well", USAGE)
    ids = tokenizer_of(text.cfg).tokenize(options.start)
    if not ids:
        raise MinisdError("start has no words", options.word, remedy="name words that mean nearly the same", code=USAGE)
    rows = torch.tensor([ids[n % len(ids)] for n in range(options.vectors)], device=text.token.weight.device)
    try:
        learn(text, Word(options.word, options.vectors), text.token.weight[rows].detach())
    except ValueError as fault:
        raise MinisdError("this cannot be a word of prompts", "textual_inversion", str(fault), "name another",
                          USAGE) from fault
    file = f"{''.join(c for c in options.word if c.isalnum() or c in '-_') or 'word'}.safetensors"
    return Learnt({"text.token.extra": 1.0}, partial(export, sd, options.word, file, metadata), file, "--embedding")


def export(sd: StableDiffusion, word: str, file: str, metadata: Mapping[str, str], folder: Path) -> None:
    """The word's vectors; a file that a killed export has left is the same."""
    target = folder / file
    target.unlink(missing_ok=True)
    extra = sd.text[0].token.extra
    assert extra is not None
    write_embedding(target, word, extra, metadata)
