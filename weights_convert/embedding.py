"""Files of textual inversion: the vectors of a word as A1111, diffusers and SDXL's trainers have them, in a file of
their own or bundled in a LoRA's."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from minisd.errors import NUMERICAL, USAGE, MinisdError
from weights_convert.read import read_file
from weights_convert.write import new, save_file

NAMELESS = ("*", "emb_params")                    # what A1111 calls every word in its files: the file's name counts
ENCODERS = {"clip_l": "text", "clip_g": "text_2"}                   # SDXL's, by their keys
BUNDLE = re.compile(r"bundle_emb\.([^.]+)\.(?:string_to_param\.)?(.+)")     # A1111's, in a LoRA's file
ALONE = ""                                        # stands for the text encoder of models that have but one
NOTHING: Mapping[str, str] = MappingProxyType({})


class Embedding(NamedTuple):
    """A word's vectors [n, width] by text encoder, and what the file calls it, if it says so."""

    name: str | None
    vectors: Mapping[str, Tensor]


def read_embedding(source: str | Path) -> Embedding:
    """A1111's .pt and .safetensors, diffusers' learned_embeds .bin and .safetensors, SDXL's with clip_l and clip_g."""
    return understood(read_file(Path(source)).tensors, str(source))


def understood(tensors: Mapping[str, Tensor], where: str) -> Embedding:
    """The embedding that a file's tensors are, all checked."""
    if tensors and tensors.keys() <= ENCODERS.keys():
        return Embedding(None, {ENCODERS[key]: rows(key, one, where) for key, one in tensors.items()})
    if len(tensors) != 1:
        raise MinisdError("not an embedding", where,
                          f"it holds {len(tensors)} tensors: {', '.join([*tensors][:2])}{', …' * (len(tensors) > 2)}",
                          "give a textual inversion; LoRAs go to --lora, models to --model")
    (key, tensor), = tensors.items()
    return Embedding(None if key in NAMELESS else key, {ALONE: rows(key, tensor, where)})


def rows(key: str, tensor: Tensor, where: str) -> Tensor:
    """Vectors [n, width] of a tensor that may be one vector."""
    if tensor.dim() not in (1, 2) or not tensor.numel() or not tensor.is_floating_point():
        raise MinisdError("not an embedding", where, f"{key} is {tensor.dtype} {list(tensor.shape)}",
                          "an embedding has a few rows of fractions")
    if not tensor.isfinite().all():
        raise MinisdError("the embedding holds NaN or infinity", where, key, code=NUMERICAL)
    return tensor.reshape(-1, tensor.shape[-1]).clone()


def is_alone(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is an embedding's and no other's, as far as keys and shapes tell."""
    return (len(tensors) == 1 or tensors.keys() == ENCODERS.keys()) and all(one.dim() < 3 for one in tensors.values())


def is_bundled(key: str) -> bool:
    """Whether a key of a LoRA's file is a word's: cloneofsimo's `<word>`, or A1111's `bundle_emb.word.`"""
    return (key.startswith("<") and key.endswith(">")) or BUNDLE.fullmatch(key) is not None


def bundled(tensors: Mapping[str, Tensor], where: str) -> list[Embedding]:
    """The embeddings that a LoRA's file holds, by the keys that are no modules'."""
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = BUNDLE.fullmatch(key)
        word, own = match.groups() if match else (key, key)
        words.setdefault(word, {})[own] = tensor
    return [Embedding(word, understood(own, f"{where}: the word {word!a}").vectors) for word, own in words.items()]


def write_embedding(target: Path, word: str, vectors: Tensor, metadata: Mapping[str, str] = NOTHING) -> None:
    """A .safetensors file with one tensor [n, width] called by its word, as diffusers and A1111 read it."""
    if not re.fullmatch(r"\S+", word):
        raise MinisdError(f"the word {word!r}", str(target), "other programs read no word with spaces", code=USAGE)
    with new(target) as path:
        save_file(path, {word: vectors.detach().to("cpu", torch.float32)}, {"format": "pt", **metadata})
