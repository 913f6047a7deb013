"""Words that a text encoder is taught by a file of a few vectors: textual inversion (Gal et al., arXiv 2208.01618)."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from minisd.clip import CLIPText
from minisd.config import Word
from minisd.errors import NUMERICAL, USAGE, MinisdError
from minisd.pipeline import StableDiffusion
from weights_convert.read import read_file
from weights_convert.write import new, save_file

NAMELESS = ("*", "emb_params")                    # what A1111 calls every word in its files: the file's name counts
NOTHING: Mapping[str, str] = MappingProxyType({})


def add_embedding(sd: StableDiffusion, source: str | Path, word: str | None = None) -> str:
    """Teach a pipeline the word of an embedding's file, and return it as it is written in prompts.

    It is `word`, or what the file calls it, or the file's name.
    """
    if len(sd.text) != 1:
        raise MinisdError(f"a model with {len(sd.text)} text encoders", str(source), "embeddings are read for one",
                          code=USAGE)
    named, vectors = read_embedding(source)
    text = word or named
    try:
        learn(sd.text[0], Word(" ".join(text.split()).lower(), len(vectors)), vectors)
    except ValueError as fault:
        raise MinisdError("this cannot be a word of prompts", str(source), str(fault), "name another", USAGE) from fault
    return sd.text[0].cfg.words[-1].text


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


def read_embedding(source: str | Path) -> tuple[str, Tensor]:
    """The word of a file and its vectors [n, width]: A1111's .pt and .safetensors, diffusers' .bin and .safetensors."""
    path = Path(source)
    tensors = read_file(path).tensors
    if len(tensors) != 1:
        raise MinisdError("not an embedding for one text encoder", str(path),
                          f"it holds {len(tensors)} tensors: {', '.join(list(tensors)[:5])}",
                          "give a textual inversion of this model's family")
    (name, tensor), = tensors.items()
    vectors = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() in (1, 2) else tensor
    if vectors.dim() != 2 or not vectors.is_floating_point():
        raise MinisdError("not an embedding", str(path), f"{name} is {tensor.dtype} {list(tensor.shape)}",
                          "an embedding has a few rows of fractions")
    if not vectors.isfinite().all():
        raise MinisdError("the embedding holds NaN or infinity", str(path), name, code=NUMERICAL)
    return path.stem if name in NAMELESS else name, vectors.clone()


def write_embedding(target: Path, word: str, vectors: Tensor, metadata: Mapping[str, str] = NOTHING) -> None:
    """A .safetensors file with one tensor [n, width] called by its word, as diffusers and A1111 read it."""
    if not re.fullmatch(r"\S+", word):
        raise MinisdError(f"the word {word!r}", str(target), "other programs read no word with spaces", code=USAGE)
    with new(target) as path:
        save_file(path, {word: vectors.detach().to("cpu", torch.float32)}, {"format": "pt", **metadata})
