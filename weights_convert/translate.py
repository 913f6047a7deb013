"""State dicts through key tables: names and tensors, from one dialect to another, strict about every key."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from minisd.errors import MinisdError
from weights_convert.tables import Row

SHOWN = 10  # keys that an error lists


def translate(tensors: Mapping[str, Tensor], source: Iterable[Row], target: Iterable[Row]) -> dict[str, Tensor]:
    """The same tensors under the target's names and in its layouts; `source` and `target` are of the same config.

    Tensors are shared where the layouts allow. What a table knows and leaves behind is not in the result.
    """
    return from_ours(to_ours(tensors, source), target)


def to_ours(tensors: Mapping[str, Tensor], source: Iterable[Row]) -> dict[str, Tensor]:
    """A dialect's tensors under our names and in our layouts."""
    rows = list(source)
    check(tensors, needed=[name for row in rows if row.ours for name in row.theirs],
          optional=[name for row in rows if not row.ours for name in row.theirs])
    result: dict[str, Tensor] = {}
    for row in rows:
        if row.ours:
            result |= applied(row.rule.read, tensors, row.theirs, row.ours)
    return result


def from_ours(tensors: Mapping[str, Tensor], target: Iterable[Row]) -> dict[str, Tensor]:
    """Our tensors under a dialect's names and in its layouts."""
    rows = [row for row in target if row.ours]
    check(tensors, needed=[name for row in rows for name in row.ours])
    result: dict[str, Tensor] = {}
    for row in rows:
        result |= applied(row.rule.write, tensors, row.ours, row.theirs)
    return result


def applied(rule: Callable[..., Sequence[Tensor]], tensors: Mapping[str, Tensor], given: Sequence[str],
            made: Sequence[str]) -> dict[str, Tensor]:
    """The rule's results under the names of what is made."""
    try:
        return dict(zip(made, rule(*(tensors[name] for name in given)), strict=True))
    except (RuntimeError, ValueError) as error:
        shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in given)
        raise MinisdError(f"no {', '.join(made)} can be made of {shapes}", why=str(error)) from error


def check(given: Iterable[str], needed: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Stops at a key that the table does not know, and at one that it needs and is not there."""
    given, needed = set(given), set(needed)
    missing, stray = sorted(needed - given), sorted(given - needed - set(optional))
    if missing or stray:
        faults = [f"{what} {listed(keys)}" for what, keys in (("missing", missing), ("not known", stray)) if keys]
        raise MinisdError(f"{len(missing)} keys missing and {len(stray)} too many for the model of this config",
                          why="; ".join(faults), remedy="check that the dialect and the config are those of the file")


def listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
