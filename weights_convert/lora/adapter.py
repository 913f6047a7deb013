"""An adapter as its file says it, free of any dialect: what is added to which module of which part."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minisd.config import ModelConfig

Kind = Literal["lora", "loha", "lokr"]


class Place(NamedTuple):
    """A module of a model: the part (unet, text, text_2) and our path in it."""

    part: str
    path: str


@dataclass(frozen=True)
class Entry:
    """What is added to one module's weight. The tensors' roles:

    lora: `down` [rank, in, ...], `up` [out, rank, ...] and, of some convolutions, `mid` [rank, rank, k, k];
    loha: `w1_a` `w1_b` `w2_a` `w2_b`; lokr: `w1` or `w1_a` `w1_b`, and `w2` or `w2_a` `w2_b`.
    """

    kind: Kind
    tensors: Mapping[str, Tensor]
    alpha: float | None = None                    # None: not stated, which is as much as the rank

    @property
    def rank(self) -> int:
        """Inner size of its (first) product of matrices; of a LoKr of two full factors, 1."""
        inner = {"lora": ("down",), "loha": ("w1_b",), "lokr": ("w1_b", "w2_b")}[self.kind]
        return next((self.tensors[role].shape[0] for role in inner if role in self.tensors), 1)

    @property
    def scale(self) -> float:
        """alpha / rank, by which the product is multiplied; full factors of a LoKr stand as they are."""
        full = self.kind == "lokr" and {"w1", "w2"} <= self.tensors.keys()
        return 1.0 if full or self.alpha is None else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, int]:
        """Of what it adds, [out, in * k * k], without computing it; RuntimeError where tensors do not fit together."""
        shapes = {role: tensor.to("meta") for role, tensor in self.tensors.items()}
        rows, columns = replace(self, tensors=shapes).delta().shape
        return rows, columns

    def delta(self) -> Tensor:
        """The matrix [out, in * k * k] that is added to the weight, in float32."""
        t = {role: tensor.float() for role, tensor in self.tensors.items()}
        if self.kind == "loha":
            return self.scale * (t["w1_a"] @ t["w1_b"].flatten(1)) * (t["w2_a"] @ t["w2_b"].flatten(1))
        if self.kind == "lokr":
            return self.scale * kronecker(t)
        if "mid" in t:
            whole = torch.einsum("or,rs...,si->oi...", t["up"].flatten(1), t["mid"], t["down"].flatten(1))
            return self.scale * whole.flatten(1)
        return self.scale * (t["up"].flatten(1) @ t["down"].flatten(1))


def kronecker(t: Mapping[str, Tensor]) -> Tensor:
    """The product of both factors of a LoKr: [out, in * k * k]."""
    w1, w2 = (t[name] if name in t else (t[f"{name}_a"] @ t[f"{name}_b"].flatten(1)).unflatten(
        1, t[f"{name}_b"].shape[1:]) for name in ("w1", "w2"))
    return torch.kron(w1[(..., *[None] * (w2.dim() - w1.dim()))], w2).flatten(1)


@dataclass(frozen=True)
class Adapter:
    """A file's entries by place, and what else it says."""

    entries: Mapping[Place, Entry]
    cfg: ModelConfig                              # of the model that it belongs to, as far as its names tell
    metadata: Mapping[str, str] = field(default_factory=dict)
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)  # words it brings, by their keys; see `embedding`
    dialect: str = "kohya"
    notes: tuple[str, ...] = ()

    def parts(self) -> Iterator[str]:
        """The parts it touches, the UNet first."""
        yield from sorted({place.part for place in self.entries}, key=("unet", "text", "text_2").index)

    def of(self, part: str) -> dict[str, Entry]:
        """The entries of a part by our paths."""
        return {place.path: entry for place, entry in self.entries.items() if place.part == part}
