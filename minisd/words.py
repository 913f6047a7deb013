"""Words that a text encoder is taught by a file of a few vectors: textual inversion (Gal et al., arXiv 2208.01618)."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.clip import CLIPText
from minisd.config import ModelConfig, Word, text_parts
from minisd.errors import BAD_FILE, USAGE, MinisdError
from minisd.pipeline import StableDiffusion
from minisd.text import tokenizer_of
from minisd.tokenizer import learnt_in
from weights_convert.embedding import ALONE, Embedding, bundled, read_embedding

log = logging.getLogger(__name__)

MAKERS = {768: "SD1", 1024: "SD2", 1280: "SDXL's second text encoder"}       # who has vectors of so many numbers
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is taught: words that all stand for the same vectors [n, width], which each text encoder has of its own."""

    words: tuple[str, ...]
    vectors: Mapping[str, Tensor]
    where: str                                    # the file


# ---------------------------------------------------------------- what a file teaches
def lesson_of(source: str | Path, cfg: ModelConfig, word: str | None = None) -> Lesson:
    """An embedding's file, for a model of this config. Its word is `word`; or what the file says, or its name.

    A word that the model knows already is no name for another: whoever says it would not know which is meant.
    """
    path, read = Path(source), read_embedding(source)
    return taught(read, [word] if word else [read.name, named(path)], cfg, str(source))


def lessons_in(tensors: Mapping[str, Tensor], cfg: ModelConfig, where: str) -> tuple[Lesson, ...]:
    """The words that a LoRA's file brings along; it may mean other things by some than the model does."""
    found = []
    for one in bundled(tensors, where):
        text = plain(one.name or "")
        if fault := unsayable(text):
            log.warning("%s: the LoRA brings a word that no prompt can say, and that is left out: %s", where, fault)
        else:
            found.append(Lesson((text,), fitting(one.vectors, cfg, where), where))
    return tuple(found)


def named(path: Path) -> str:
    """A file's name without its suffix; other points belong to it."""
    return path.name.removesuffix(next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), ""))


def taught(embedding: Embedding, names: Iterable[str | None], cfg: ModelConfig, where: str) -> Lesson:
    """The lesson of an embedding, by those of its names that can be words."""
    wanted = list(dict.fromkeys(plain(name) for name in names if name))
    faults = {text: unsayable(text) or known(text, cfg) for text in wanted}
    words = tuple(text for text in wanted if not faults[text])
    if not words:
        raise MinisdError("the embedding's name cannot be a new word of prompts", where,
                          "; ".join(filter(None, faults.values())), "rename the file", BAD_FILE)
    return Lesson(words, fitting(embedding.vectors, cfg, where), where)


def plain(name: str) -> str:
    """As prompts are read: small letters, single spaces."""
    return " ".join(name.split()).lower()


def unsayable(text: str) -> str:
    """Why no prompt can say a text, or nothing."""
    try:
        Word(text)
    except ValueError as fault:
        return str(fault)
    return ""


def known(text: str, cfg: ModelConfig) -> str:
    """That a model knows a word, or nothing."""
    knows = any(len(tokenizer_of(one).tokenize(text)) == 1 or text in {word.text for word in one.words}
                for one in cfg.text)
    return f"the model knows the word {text!r} already" if knows else ""


def fitting(vectors: Mapping[str, Tensor], cfg: ModelConfig, where: str) -> dict[str, Tensor]:
    """The vectors by the model's text encoders; those of another model are refused."""
    widths = text_parts(one.width for one in cfg.text)
    found = {("text" if part == ALONE and len(widths) == 1 else part): one for part, one in vectors.items()}
    there = {part: one.shape[1] for part, one in found.items()}
    counts = {len(one) for one in found.values()}
    if there != widths or len(counts) > 1:
        said = " and ".join(f"{width} numbers ({MAKERS.get(width, 'a model of its own')})" for width in there.values())
        raise MinisdError("the embedding was made for another model", where, f"its vectors have {said}; this model's "
                          f"have {' and '.join(map(str, widths.values()))}", "give the model that it was made for, by "
                          "--model", BAD_FILE)
    return found


# ---------------------------------------------------------------- taught and forgotten
def add_embedding(sd: StableDiffusion, source: str | Path, word: str | None = None) -> str:
    """Teach a pipeline the word of an embedding's file, and return it as it is written in prompts.

    It is `word`, or what the file calls it, or the file's name.
    """
    one = lesson_of(source, sd.cfg, word)
    teach(sd, [replace(one, words=one.words[:1])])
    return one.words[0]


def teach(sd: StableDiffusion, lessons: Sequence[Lesson], lora: str = "") -> None:
    """Teach a pipeline's text encoders; `lora` is the adapter that brings the words along, by its name beside them."""
    must_differ([word.text for word in sd.text[0].cfg.words], lessons)
    for one in lessons:
        for text in one.words:
            for part, model in text_parts(sd.text).items():
                learn(model, Word(text, len(one.vectors[part]), lora), one.vectors[part])


def must_differ(known: Iterable[str], lessons: Iterable[Lesson]) -> None:
    """Refuses lessons that teach a word which has been taught, or the same one."""
    taught = set(known)
    for one in lessons:
        for text in one.words:
            if text in taught:
                raise MinisdError(f"the word {text!r} is taught twice", one.where, "another file teaches it, or the "
                                  "model has learnt it", "rename one of the files, or leave one out", USAGE)
            taught.add(text)


@torch.no_grad()
def learn(model: CLIPText, word: Word, vectors: Tensor) -> None:
    """Teach a text encoder a word in place: vectors [n, width], one for each token that it becomes."""
    width, weight = model.cfg.width, model.token.weight
    if vectors.shape != (word.vectors, width):
        raise MinisdError("the embedding was made for another text encoder", word.text,
                          f"its vectors are {list(vectors.shape)}, this one's have {width} numbers", code=USAGE)
    model.cfg = replace(model.cfg, words=(*model.cfg.words, word))
    known = [] if model.token.extra is None else [model.token.extra]
    rows = torch.cat([*known, vectors.to(weight.device, weight.dtype)])
    model.token.extra = nn.Parameter(rows, requires_grad=weight.requires_grad)


@torch.no_grad()
def forget(model: CLIPText, texts: Collection[str]) -> None:
    """Take learnt words and their rows out of a text encoder; the others keep theirs."""
    words, rows = model.cfg.words, model.token.extra
    if rows is None or not any(word.text in texts for word in words):
        return
    kept = [(word, own) for word, own in zip(words, rows.split([word.vectors for word in words]), strict=True)
            if word.text not in texts]
    model.cfg = replace(model.cfg, words=tuple(word for word, _ in kept))
    model.token.extra = nn.Parameter(torch.cat([own for _, own in kept]), rows.requires_grad) if kept else None


def said(lesson: Lesson, texts: Iterable[str]) -> bool:
    """Whether any of these texts says the word."""
    words = tuple(map(Word, lesson.words))
    return any(learnt_in(text, words) for text in texts)
