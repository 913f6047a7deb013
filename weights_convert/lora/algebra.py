"""Calculating with adapters: into a checkpoint's weights, out of two of them, to another rank, and with each other.

A sum of adapters is exact: their factors side by side, of the sum of the ranks. `resized` brings it to fewer by the
singular value decomposition, which is the best approximation of a matrix of that rank (Eckart and Young 1936).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from minisd.config import ModelConfig
from minisd.errors import USAGE, MinisdError
from weights_convert.lora.adapter import Adapter, Entry, Place
from weights_convert.lora.names import kernel_of, modules


class Kept(NamedTuple):
    """What a truncation has kept of a module's matrix."""

    rank: int
    energy: float                                 # share of the squared singular values, 0 to 1


@dataclass(frozen=True)
class Truncation:
    """How many singular values are kept: at most `rank`, and no more than make up this share of the energy."""

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise MinisdError("neither a rank nor an energy", remedy="give --rank, --energy or both", code=USAGE)
        if self.rank is not None and self.rank < 1:
            raise MinisdError(f"rank {self.rank}", remedy="give at least 1", code=USAGE)
        if self.energy is not None and not 0 < self.energy <= 1:
            raise MinisdError(f"energy {self.energy:g}", remedy="give a share above 0 and up to 1", code=USAGE)

    def count(self, values: Tensor) -> int:
        """Of singular values in falling order."""
        count = len(values) if self.rank is None else min(self.rank, len(values))
        if self.energy is not None:
            shares = values.double().square().cumsum(0) / values.double().square().sum().clamp_min(1e-300)
            count = min(count, 1 + int((shares < self.energy - 1e-12).sum()))
        return max(count, 1)


def merged(weights: Mapping[str, Tensor], entries: Mapping[str, Entry], strength: float = 1.0) -> dict[str, Tensor]:
    """A part's tensors, in our names, with an adapter's matrices added; summed in float32, rounded once."""
    result = dict(weights)
    for path, entry in entries.items():
        weight = weights[f"{path}.weight"]
        if entry.shape != tuple(weight.flatten(1).shape):
            raise MinisdError(f"the adapter does not fit {path}", why=f"it adds {list(entry.shape)} to a weight of "
                              f"{list(weight.shape)}", remedy="give the model that it was made for")
        total = weight.float() + strength * entry.delta().reshape(weight.shape)
        result[f"{path}.weight"] = total.to(weight.dtype)
    return result


def extracted(before: Mapping[str, Tensor], after: Mapping[str, Tensor], part: str, cfg: ModelConfig,
              how: Truncation) -> tuple[dict[Place, Entry], dict[Place, Kept]]:
    """The low-rank difference of two checkpoints' parts, in our names; modules that are alike are left out."""
    entries, kept = {}, {}
    for module in modules(cfg):
        key = f"{module.place.path}.weight"
        if module.place.part != part or key not in before or before[key].dim() not in (2, 4):
            continue
        difference = after[key].float() - before[key].float()
        if difference.any():
            down, up, kept[module.place] = factors(difference.flatten(1), how)
            entries[module.place] = shaped(down, up, difference.shape)
    return entries, kept


def factors(matrix: Tensor, how: Truncation) -> tuple[Tensor, Tensor, Kept]:
    """down [rank, in] and up [out, rank] of equal size, whose product is nearest to a matrix."""
    u, values, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    rank = how.count(values)
    root = values[:rank].sqrt()
    energy = values[:rank].double().square().sum() / values.double().square().sum().clamp_min(1e-300)
    return root[:, None] * v[:rank], u[:, :rank] * root, Kept(rank, float(energy))


def shaped(down: Tensor, up: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Entry:
    """Factors beside a weight of this shape."""
    tail = [1] * (len(shape) - 2)
    tensors = {"down": down.reshape(-1, *shape[1:]), "up": up.reshape(*up.shape, *tail)}
    return Entry("lora", {role: tensor.to(dtype).contiguous() for role, tensor in tensors.items()}, float(len(down)))


def resized(adapter: Adapter, how: Truncation) -> tuple[Adapter, dict[Place, Kept]]:
    """Every entry as a plain LoRA of another rank; alphas become the ranks, with their effect in the factors."""
    entries, kept = {}, {}
    for place, entry in adapter.entries.items():
        down, up, kept[place] = factors(entry.delta(), how)
        kernel = kernel_of(place, adapter.cfg)
        shape = (up.shape[0], down.shape[1] // math.prod(kernel), *kernel)
        entries[place] = shaped(down, up, shape, next(iter(entry.tensors.values())).dtype)
    return replace(adapter, entries=entries), kept


def combined(adapters: Iterable[Adapter], weights: Iterable[float]) -> Adapter:
    """The sum of plain LoRAs, each times its weight: a difference by weights 1 and -1, an average by 1/n each.

    Exact but for the rounding of the scales: factors are put side by side.
    """
    given, times = list(adapters), list(weights)
    if len({one.cfg for one in given}) > 1:
        raise MinisdError("the adapters belong to different models", code=USAGE)
    places = dict.fromkeys(place for one in given for place in one.entries)
    entries = {place: together([(one.entries[place], weight) for one, weight in zip(given, times, strict=True)
                                if place in one.entries], place) for place in places}
    return replace(given[0], entries=entries, metadata={}, embeddings={}, notes=())


def together(terms: list[tuple[Entry, float]], place: Place) -> Entry:
    """One entry for a weighted sum."""
    odd = [entry.kind for entry, _ in terms if entry.kind != "lora" or "mid" in entry.tensors]
    if odd:
        raise MinisdError(f"{place.part} {place.path} is a {odd[0]}, not a plain LoRA",
                          remedy="resize it first", code=USAGE)
    downs = torch.cat([entry.tensors["down"].float() for entry, _ in terms])
    ups = torch.cat([entry.tensors["up"].float() * (weight * entry.scale) for entry, weight in terms], dim=1)
    dtype = terms[0][0].tensors["down"].dtype
    return Entry("lora", {"down": downs.to(dtype), "up": ups.to(dtype)}, float(len(downs)))


