"""What a tensor of a file may be: the dtypes that are known, and sizes that make sense."""

from math import prod
from typing import Any

import torch

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
}
LONGEST, MOST_DIMENSIONS, LONGEST_NAME = 2 ** 48, 16, 500


def sizes(numbers: Any, kind: type[list[Any]] | type[tuple[Any, ...]]) -> bool:
    """Whether this is a list or tuple of sizes; true and 1.0 are no numbers here."""
    return (type(numbers) is kind and len(numbers) <= MOST_DIMENSIONS
            and all(type(n) is int and 0 <= n <= LONGEST for n in numbers))


def shape(numbers: Any, kind: type[list[Any]] | type[tuple[Any, ...]]) -> bool:
    """Whether a tensor may have this shape; an empty one may not be endless in its other dimensions."""
    return sizes(numbers, kind) and prod(n or 1 for n in numbers) <= LONGEST


def named(name: str) -> bool:
    """Whether a tensor may be called so: it can be printed, and is not endless."""
    return name.isprintable() and len(name) <= LONGEST_NAME
