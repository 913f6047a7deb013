"""A measured number with its name, its sample and how sure it is; and a table of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Z = 1.96                                          # of a 95 % interval


@dataclass(frozen=True)
class Figure:
    """`value` of `measure`, taken of `pictures` of `what`; the interval of 95 % only says what other pictures of the
    kind might give."""

    measure: str
    what: str
    value: float
    pictures: int
    interval: tuple[float, float] | None = None


def mean(measure: str, what: str, values: Tensor) -> Figure:
    """The mean of one value per picture [n], n at least 2, with the interval of the normal distribution."""
    values = values.double()
    middle, half = values.mean().item(), Z * values.std().item() / math.sqrt(len(values))
    return Figure(measure, what, middle, len(values), (middle - half, middle + half))


def share(measure: str, what: str, hits: Tensor) -> Figure:
    """The share of ones among zeros and ones [n], with Wilson's interval (1927)."""
    n, p = len(hits), hits.double().mean().item()
    middle = (p + Z ** 2 / (2 * n)) / (1 + Z ** 2 / n)
    half = Z / (1 + Z ** 2 / n) * math.sqrt(p * (1 - p) / n + Z ** 2 / (4 * n ** 2))
    return Figure(measure, what, p, n, (max(0.0, middle - half), min(1.0, middle + half)))


def table(figures: Sequence[Figure]) -> str:
    """One line per figure, in columns."""
    rows = [("measure", "of", "value", "95 % interval", "pictures")]
    for one in figures:
        interval = f"{one.interval[0]:.4g} to {one.interval[1]:.4g}" if one.interval else ""
        rows.append((one.measure, one.what, f"{one.value:.4g}", interval, str(one.pictures)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)
