"""The header of a safetensors file, read more strictly than the format's own reader does, before anything is allocated.

Every tensor must lie where its shape says and all must tile the file exactly; names are unique, printable and short.
"""

import json
from collections import Counter
from math import prod
from typing import Any, NamedTuple

import torch

from minisd.errors import MinisdError
from weights_convert import limits
from weights_convert.limits import DTYPES
from weights_convert.mapped import Mapped, shown

LONGEST_HEADER, MOST_TENSORS = 2 ** 24, 100_000
MOST_MARKS = 20 * MOST_TENSORS                    # braces, brackets or commas
DAMAGED = "the safetensors header is damaged"


class Entry(NamedTuple):
    """A tensor as the header describes it; bytes are counted from the beginning of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Fault(ValueError):
    """What is wrong with a header, in words."""


def read_header(file: Mapped) -> tuple[list[Entry], dict[str, str]]:
    """The tensors in the order of the header, and the metadata."""
    size = int.from_bytes(file.memory[:8], "little")
    if size > LONGEST_HEADER:
        raise file.refused(DAMAGED, f"it claims {size:,} bytes, at most {LONGEST_HEADER:,} are read")
    if 8 + size > len(file):
        raise cut_off(file, 8 + size, "alone for its header")
    try:
        described, metadata = parse(file.memory[8:8 + size].decode("utf-8"))
        entries = [entry(name, value, 8 + size) for name, value in described.items()]
        end = tiled(entries, 8 + size)
    except (Fault, UnicodeDecodeError) as fault:
        raise file.refused(DAMAGED, str(fault)[:300], "copy or download it again") from fault
    if end > len(file):
        raise cut_off(file, end, "by its header")
    if end < len(file):
        raise file.refused(f"{len(file) - end:,} bytes follow the last tensor",
                           f"the file is {len(file):,} bytes, the header says {end:,}")
    return entries, metadata


def cut_off(file: Mapped, wanted: int, by: str) -> MinisdError:
    return file.refused("the file is cut off",
                        f"it is {len(file):,} bytes and should be {wanted:,} {by}: {wanted - len(file):,} are missing",
                        "the download or copy was not finished: fetch it again")


def parse(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors' entries and the metadata. What is longer than any header is not even looked at."""
    if max(map(text.count, "{[,")) > MOST_MARKS:
        raise Fault(f"more than {MOST_TENSORS:,} tensors, or deeply nested")
    try:
        described = json.loads(text.rstrip(" \t\r\n\0"), object_pairs_hook=once)
    except Fault:
        raise
    except (ValueError, RecursionError) as error:
        raise Fault(f"it is not JSON: {str(error)[:100]}") from error
    metadata = described.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        raise Fault("its metadata are not texts")
    if len(described) > MOST_TENSORS:
        raise Fault(f"more than {MOST_TENSORS:,} tensors")
    return described, metadata


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, if each of its keys is there once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Fault(f"{shown(twice)} is there twice")
    return found


def entry(name: str, value: Any, base: int) -> Entry:
    """One tensor, checked by itself."""
    if not limits.named(name):
        raise Fault(f"the name {shown(name)!r} is too long or not printable")
    if type(value) is not dict or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise Fault(f"{shown(name)} has to have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise Fault(f"{shown(name)}: the dtype {shown(dtype)} is not known")
    if not limits.shape(shape, list) or not limits.sizes(offsets, list) or len(offsets) != 2:
        raise Fault(f"{shown(name)}: shape {shown(shape)} and offsets {shown(offsets)} must be sensible sizes")
    if offsets[1] - offsets[0] != prod(shape) * DTYPES[dtype].itemsize:
        raise Fault(f"{shown(name)}: {dtype} {shown(shape)} does not fill the bytes {offsets[0]} to {offsets[1]}")
    return Entry(name, DTYPES[dtype], tuple(shape), base + offsets[0], base + offsets[1])


def tiled(entries: list[Entry], at: int) -> int:
    """Where the last tensor ends, if each begins where the one before it ends."""
    for one in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if one.begin != at:
            raise Fault(f"{shown(one.name)} begins at byte {one.begin:,}, {'a gap after' if one.begin > at else 'in'} "
                        f"the tensor that ends at {at:,}")
        at = one.end
    return at
