"""The header of a safetensors file, read more strictly than the format's own reader does, before anything is allocated.

Every tensor must lie where its shape says and all must tile the file exactly; names are unique, printable and short.
"""

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from math import prod
from typing import Any, NamedTuple

import torch

from minisd.errors import MinisdError
from weights_convert.mapped import Mapped, shown

LONGEST_HEADER, MOST_TENSORS, LONGEST_NAME = 2 ** 24, 100_000, 500
LONGEST_DIMENSION, MOST_DIMENSIONS = 2 ** 48, 16
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
}
SPACE = re.compile(r"[ \t\r\n]*")
FLAT = re.compile(r"\{[^{}]{0,2000}\}")            # a tensor's entry: an object with no object in it
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
    """The header's two levels by hand, so that no nesting is followed and every key is seen, also one given twice."""
    described: dict[str, Any] = {}
    metadata: dict[str, str] | None = None
    at = expect(text, 0, "{")
    while not text.startswith("}", at):
        at = expect(text, at, ",") if described or metadata is not None else at
        name, at = string(text, at)
        at = expect(text, at, ":")
        if name in described or (name == "__metadata__" and metadata is not None):
            raise Fault(f"{shown(name)} is there twice")
        if name == "__metadata__":
            metadata, at = strings(text, at)
            continue
        described[name], at = flat(text, at, name)
        if len(described) > MOST_TENSORS:
            raise Fault(f"more than {MOST_TENSORS:,} tensors")
    if text[at + 1:].strip(" \t\r\n\0"):
        raise Fault("something follows its closing brace")
    return described, metadata or {}


def strings(text: str, at: int) -> tuple[dict[str, str], int]:
    """An object of strings, and where it ends."""
    found: dict[str, str] = {}
    at = expect(text, at, "{")
    while not text.startswith("}", at):
        at = expect(text, at, ",") if found else at
        name, at = string(text, at)
        if name in found:
            raise Fault(f"{shown(name)} is there twice in its metadata")
        found[name], at = string(text, expect(text, at, ":"))
        if len(found) > MOST_TENSORS:
            raise Fault(f"more than {MOST_TENSORS:,} lines of metadata")
    return found, skip(text, at + 1)


def flat(text: str, at: int, name: str) -> tuple[dict[str, Any], int]:
    """A small object without objects in it, and where it ends."""
    match = FLAT.match(text, at)
    try:
        pairs: list[tuple[str, Any]] = json.loads(match[0], object_pairs_hook=list) if match else []
    except (ValueError, RecursionError) as error:
        raise Fault(f"{shown(name)} is not JSON: {str(error)[:100]}") from error
    if match is None or sorted(key for key, _ in pairs) != ["data_offsets", "dtype", "shape"]:
        raise Fault(f"{shown(name)} has to have dtype, shape and data_offsets, each once and nothing else")
    return dict(pairs), skip(text, match.end())


def string(text: str, at: int) -> tuple[str, int]:
    if not text.startswith('"', at):
        raise Fault(f"no name at character {at:,}: it is not the JSON of a safetensors file")
    try:
        found, at = scanstring(text, at + 1, True)
    except ValueError as error:
        raise Fault(str(error)[:100]) from error
    return found, skip(text, at)


def expect(text: str, at: int, mark: str) -> int:
    at = skip(text, at)
    if not text.startswith(mark, at):
        raise Fault(f"no {mark} at character {at:,}: it is not the JSON of a safetensors file")
    return skip(text, at + 1)


def skip(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    return match.end() if match else at


def entry(name: str, value: dict[str, Any], base: int) -> Entry:
    """One tensor, checked by itself."""
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise Fault(f"the name {shown(name)!r} is too long or not printable")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Fault(f"{shown(name)}: the dtype {shown(dtype)} is not known")
    if not sizes(shape) or not sizes(offsets) or len(offsets) != 2 or len(shape) > MOST_DIMENSIONS:
        raise Fault(f"{shown(name)}: shape {shown(shape)} and offsets {shown(offsets)} must be sensible sizes")
    length = prod(shape) * DTYPES[dtype].itemsize
    if prod(max(n, 1) for n in shape) > LONGEST_DIMENSION or offsets[1] - offsets[0] != length:
        raise Fault(f"{shown(name)}: {dtype} {shown(shape)} does not fill the bytes {offsets[0]} to {offsets[1]}")
    return Entry(name, DTYPES[dtype], tuple(shape), base + offsets[0], base + offsets[1])


def sizes(numbers: Any) -> bool:
    """Whether this is a list of sizes; true and 1.0 are no numbers here."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= LONGEST_DIMENSION for n in numbers)


def tiled(entries: list[Entry], at: int) -> int:
    """Where the last tensor ends, if each begins where the one before it ends."""
    for one in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if one.begin != at:
            raise Fault(f"{shown(one.name)} begins at byte {one.begin:,}, {'a gap after' if one.begin > at else 'in'} "
                        f"the tensor that ends at {at:,}")
        at = one.end
    return at
