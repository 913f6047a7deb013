"""Answers to questions about a model that need its config, but none of its weights."""

from collections.abc import Sequence
from dataclasses import replace

from minisd.config import ModelConfig, Word
from minisd.drawing.tags import EMBEDDING, taken_out
from minisd.generate.dictionary import Dictionary
from minisd.generate.options import MODEL, Options
from minisd.generate.shelf import Shelf
from minisd.generate.source import described
from minisd.samplers.info import sampler_info
from minisd.store import find
from minisd.text import explain, tokenizer_of


def answer(options: Options, prompts: Sequence[str]) -> str:
    """How the prompts are read, and what a sampler does: with this model, and in as many steps as it would take."""
    own, cfg = described(find(options.picture.model or MODEL))
    steps, name = options.picture.steps or own.steps, options.questions.sampler_info
    words = embedded_words(options, cfg)
    tokenizers = [tokenizer_of(replace(text, words=(*text.words, *words))) for text in cfg.text]
    negative = options.picture.negative
    parts = [f"{prompt}\n{explain(taken_out(prompt)[0], tokenizers, steps)}" for prompt in prompts]
    if prompts and negative:
        parts.append(f"Negative prompt: {negative}\n{explain(negative, tokenizers, steps)}")
    if name is not None:
        parts.append(sampler_info(name, steps, cfg.noise))
    return "\n\n".join(parts)


def embedded_words(options: Options, cfg: ModelConfig) -> list[Word]:
    """The words of the embeddings given."""
    library = Shelf(EMBEDDING)
    library.embeddings(options.lora_dir, options.picture.embedding)
    return [Word(text, len(next(iter(one.vectors.values())))) for one in Dictionary(library, cfg).lessons.values()
            for text in one.words]
