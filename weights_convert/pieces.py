"""Tensors as a checkpoint's pickle describes them: the few calls that it may make, each checked and none a real one."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch

from weights_convert import limits
from weights_convert.archive import Item
from weights_convert.mapped import shown
from weights_convert.pickled import Global, Malformed, Parameters

STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
}
TYPES = {f"torch.{name}": dtype for name, dtype in STORAGES.items()}
UNTYPED = {"torch.storage.UntypedStorage": torch.uint8, "torch.UntypedStorage": torch.uint8}
DTYPES = {str(dtype): dtype for dtype in limits.DTYPES.values()}


class Storage(NamedTuple):
    item: Item
    dtype: torch.dtype


class Piece(NamedTuple):
    """A tensor as the pickle describes it, checked to lie within its storage; strides and offset count elements."""

    item: Item
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def storage(items: dict[str, Item], root: str, what: Any) -> Storage:
    """What is said to lie outside of the pickle: ("storage", type, key, place, number of elements)."""
    if type(what) is not tuple or len(what) != 5 or what[0] != "storage" or type(what[1]) is not Global:
        raise Malformed("something outside of it is no storage")
    dtype = TYPES.get(what[1].name) or UNTYPED.get(what[1].name)
    item = items.get(f"{root}/data/{what[2]}") if type(what[2]) is str else None
    if dtype is None or item is None:
        raise Malformed(f"a storage {shown(what[2])} of {shown(what[1].name)} is not there or not known")
    if type(what[4]) is not int or what[4] * dtype.itemsize != item.size:
        raise Malformed(f"storage {shown(what[2])} has {item.size:,} bytes, not {shown(what[4])} x {dtype.itemsize}")
    return Storage(item, dtype)


def tensor_v2(args: tuple[Any, ...]) -> Piece:
    """(storage, offset, shape, stride, requires_grad, hooks, metadata)"""
    if not 4 <= len(args) <= 7 or type(args[0]) is not Storage:
        raise Malformed("a tensor without a storage")
    return piece(args[0], args[0].dtype, *args[1:4])


def tensor_v3(args: tuple[Any, ...]) -> Piece:
    """(storage, offset, shape, stride, requires_grad, hooks, dtype, metadata); the storage has no type of its own."""
    if not 7 <= len(args) <= 8 or type(args[0]) is not Storage or type(args[6]) is not Global:
        raise Malformed("a tensor without a storage or a dtype")
    if (dtype := DTYPES.get(args[6].name)) is None:
        raise Malformed(f"the dtype {shown(args[6].name)} is not known")
    return piece(args[0], dtype, *args[1:4])


def piece(held: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> Piece:
    if not (limits.sizes((offset,), tuple) and limits.shape(shape, tuple) and limits.sizes(stride, tuple)
            and len(shape) == len(stride)):
        raise Malformed(f"a tensor's offset, shape {shown(shape)} or stride {shown(stride)} are no sizes")
    room, count = held.item.size // dtype.itemsize, prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if count else offset - 1
    if last >= room or count > room:
        raise Malformed(f"a tensor {shown(shape)} with stride {shown(stride)} at {offset} lies outside its storage "
                        f"of {room:,} elements")
    return Piece(held.item, dtype, offset, shape, stride)


def first(args: tuple[Any, ...]) -> Any:
    """A parameter is its tensor."""
    if not args:
        raise Malformed("a parameter without a tensor")
    return args[0]


def ordered(args: tuple[Any, ...]) -> dict[Any, Any]:
    """An OrderedDict; old pickles give it its pairs as an argument."""
    pairs = args[0] if args else []
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise Malformed("a dictionary made of what are no pairs")
    if not all(type(key) is str for key, _ in pairs):
        raise Malformed("a dictionary with keys that are no text")
    return dict(pairs)


CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor_v2": tensor_v2, "torch._utils._rebuild_tensor_v3": tensor_v3,
    "torch._utils._rebuild_parameter": first, "collections.OrderedDict": ordered,
    "torch.nn.modules.container.ParameterDict": lambda args: Parameters(),
}
