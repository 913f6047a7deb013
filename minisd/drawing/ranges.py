"""What options may be, checked before anything is loaded; none of it needs torch."""

import math
import re

from minisd.errors import USAGE, MinisdError

SIDES = (64, 2048)                                # pixels; both must be multiples of 8
STEPS = (1, 1000)
GUIDANCE = (0.0, 100.0)
SEEDS = 2 ** 64
SHA256 = re.compile("[0-9a-f]{64}")


def in_range(option: str, value: float, low: float, high: float) -> None:
    """Refuses what lies outside, and what is not a number."""
    if not (math.isfinite(value) and low <= value <= high):
        shown = f"2^64 - {SEEDS - high:.0f}" if high > SEEDS // 2 else f"{high:g}"
        raise MinisdError(f"--{option} {value} is out of range", remedy=f"give {low:g} to {shown}", code=USAGE)


def check_side(option: str, pixels: int) -> None:
    """Sizes are never rounded to what fits: the nearest that do are named instead."""
    in_range(option, pixels, *SIDES)
    if pixels % 8:
        below = pixels // 8 * 8
        raise MinisdError(f"--{option} {pixels} is not a multiple of 8", remedy=f"give {below} or {below + 8}",
                          code=USAGE)


def check_sha256(text: str) -> None:
    if not SHA256.fullmatch(text):
        raise MinisdError(f"{text[:70]!r} is not a sha256", remedy="give 64 hexadecimal digits", code=USAGE)
