"""What a model is asked to draw: concepts of a data folder, each in one style, chosen the same way every time.

Concepts with a held-out picture come first, in that picture's style, so that as many of the drawings as possible are
combinations that the model has never seen and stand beside real pictures of the same; the others are asked for in a
style that was trained on. Rows of any other split (twins of held-out pictures) are neither drawn nor measured.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minisd.errors import USAGE, MinisdError
from minisd.images import open_picture
from minisd.train.config import DataConfig
from minisd.train.data import Row, read_rows, square

SPLITS = ("train", "holdout", "twin")             # of which the last only lends its captions


@dataclass(frozen=True)
class Question:
    """A caption to be drawn, that of a real picture; `seen` is a training picture of the concept, maybe the same."""

    concept: str
    real: Row
    held_out: bool
    seen: Row

    @property
    def prompt(self) -> str:
        return self.real.captions[0]


@dataclass(frozen=True)
class Exam:
    """Questions, each about another concept, and the captions of their concepts in every style."""

    questions: tuple[Question, ...]
    held_out: tuple[Row, ...]                     # held-out pictures of the core and the styles
    unseen: tuple[Row, ...]                       # all held-out pictures of the folder, for the autoencoder
    captions: dict[str, list[str]]                # style -> the plain captions of the questions' concepts

    @property
    def styles(self) -> list[str]:
        return [question.real.style for question in self.questions]


def choose(folder: Path, styles: Sequence[str], count: int) -> Exam:
    """`count` concepts of the folder's core, drawn in these styles (none = all), where it has pictures of them."""
    core = DataConfig(styles=tuple(styles), core_only=True)
    rows = {split: read_rows(folder, core, split) for split in SPLITS}
    if len(rows["holdout"]) < 2:
        raise MinisdError("too few held-out pictures", str(folder),
                          f"{len(rows['holdout'])} core rows of these styles are held out, 2 are the least",
                          'set "split": "holdout" in rows that no training has seen')
    seen, held_out = by_concept(rows["train"]), by_concept(rows["holdout"])
    concepts = sorted(seen, key=lambda concept: (concept not in held_out, shuffled(concept)))[:count]
    if len(concepts) < count:
        raise MinisdError(f"--count {count}, but there are {len(concepts)} concepts", str(folder),
                          "each is drawn once, and must have a training picture",
                          f"give --count {len(concepts)} or less", USAGE)
    questions = tuple(question(concept, seen[concept], held_out.get(concept, [])) for concept in concepts)
    every = by_concept([row for split in SPLITS for row in rows[split]])
    captions = {style: [caption(every[concept], style) for concept in concepts]
                for style in sorted({question.real.style for question in questions})}
    return Exam(questions, tuple(rows["holdout"]), tuple(read_rows(folder, DataConfig(), "holdout")), captions)


def question(concept: str, seen: Sequence[Row], held_out: Sequence[Row]) -> Question:
    """One of the concept's held-out pictures, else one of its training pictures."""
    trained = min(seen, key=lambda row: shuffled(f"{concept} {row.style}"))
    real = min(held_out, key=lambda row: shuffled(f"{concept} {row.style}"), default=trained)
    return Question(concept, real, bool(held_out), trained)


def by_concept(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows that name no concept are each their own, by the first caption."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.concept or row.captions[0], []).append(row)
    return found


def caption(rows: Sequence[Row], style: str) -> str:
    """A concept's plain caption in a style, or in another where it has no picture in this one."""
    return next((row.captions[0] for row in rows if row.style == style), rows[0].captions[0])


def shuffled(words: str) -> str:
    """A key that brings words into an order which has nothing to do with them, and is the same everywhere."""
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()


def pixels(rows: Iterable[Row], size: int) -> Tensor:
    """Real pictures: [n, 3, size, size] in [-1, 1]."""
    return torch.stack([square(open_picture(row.source()), size) for row in rows]).float() / 127.5 - 1


def fingerprint(rows: Iterable[Row]) -> str:
    """sha256 over the pictures and plain captions, in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(f"{row.digest} {row.captions[0]}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()
