"""Dictionaries, as read from TOML or JSON, to frozen dataclasses: strict, with every fault named by its place.

TOML has no word for nothing: where None is allowed, "none" says it.
"""

import json
import tomllib
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from cattrs import Converter, transform_error
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError

from minisd.errors import USAGE, MinisdError

T = TypeVar("T")
STRICT = Converter(forbid_extra_keys=True)


def strictly(kind: type) -> Any:
    """Accepts what is of its kind already: no "4" for 4, no True for 1; but a whole number may stand for a float."""
    accepted = (int, float) if kind is float else (kind,)

    def check(value: Any, _: type) -> Any:
        if type(value) in accepted:
            return kind(value)
        raise ValueError(f"{value!r} is not a {kind.__name__}")
    return check


for scalar in (int, float, bool, str):
    STRICT.register_structure_hook(scalar, strictly(scalar))


def optional(kind: Any) -> bool:
    """Whether a field may be None."""
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def none_or(value: Any, kind: Any) -> Any:
    """None, by its own name or as "none"; else a value of the other kind."""
    other: Any = Union[tuple(arg for arg in get_args(kind) if arg is not NoneType)]  # noqa: UP007
    return None if value is None or value == "none" else STRICT.structure(value, other)


def one_or_each(kind: Any) -> bool:
    """Whether a field is a whole number, or a tuple with one for each."""
    return set(get_args(kind)) == {int, tuple[int, ...]}


def number_or_numbers(value: Any, _: Any) -> Any:
    return STRICT.structure(value, tuple[int, ...] if isinstance(value, list | tuple) else int)


STRICT.register_structure_hook_func(optional, none_or)
STRICT.register_structure_hook_func(one_or_each, number_or_numbers)


def read(cls: type[T], data: Any, where: str) -> T:
    """A dataclass from plain data; `where` names the source in the error that lists all faults."""
    try:
        return STRICT.structure(data, cls)
    except BaseValidationError as fault:
        faults = transform_error(fault, path="", format_exception=explain)
        raise MinisdError(f"not a valid {cls.__name__}", where, "; ".join(faults[:5]),
                          "correct the named entries", USAGE) from fault


def explain(fault: BaseException, _: type | None) -> str:
    """One fault in words; for an unknown entry, the known ones that look like it."""
    if isinstance(fault, ForbiddenExtraKeysError):
        known = [field.name for field in fields(fault.cl)]
        close = [match for name in fault.extra_fields for match in get_close_matches(name, known, n=1)]
        hint = f" (did you mean {', '.join(close)}?)" if close else ""
        return f"unknown entry {', '.join(sorted(fault.extra_fields))}{hint}"
    if isinstance(fault, KeyError):
        return f"missing entry {fault}"
    return "; ".join(line.strip() for line in str(fault).splitlines())   # a MinisdError has several


def read_file(cls: type[T], path: Path) -> T:
    """A dataclass from a .toml or .json file."""
    return read(cls, parsed(path), str(path))


def parsed(path: Path) -> Any:
    """What a .toml or .json file holds."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as fault:
        raise MinisdError(f"cannot read {path.name}", str(path), fault.strerror or str(fault),
                          "check the path") from fault
    except ValueError as fault:  # TOMLDecodeError and JSONDecodeError, both with line and column
        raise MinisdError(f"{path.name} is not valid {path.suffix[1:].upper()}", str(path), str(fault),
                          "correct the file", USAGE) from fault
