r"""What a prompt says: A1111's grammar of weights, schedules and breaks, read in linear time.

| written        | read as                                                                            |
|----------------|------------------------------------------------------------------------------------|
| `(a)` `[a]`    | a weighs 1.1, or 1 / 1.1; brackets within brackets multiply                        |
| `(a:1.3)`      | a weighs 1.3                                                                       |
| `[a:b:when]`   | a, and after `when` b; `[b:when]` is nothing and then b, `[a::when]` a and nothing |
| `[a|b]`        | a and b in turn, a step each; there may be more than two                           |
| `BREAK`        | what follows begins a new window                                                   |
| `\(` ... `\\`  | one of `\ ( ) [ ] : |` as it stands                                                |

`when` is a number of steps; with a point, a part of them: 0.5 is half. That is what A1111's handbook says; its samplers
count from 0 and turn one step later. What fits no row stands for itself: a bracket without its partner (A1111 lets an
open one weigh all that follows), a number that is none, a backslash before anything else (A1111 drops it), and AND
(composable diffusion is not done).
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from minisd.errors import USAGE, MinisdError

STRONGER, WEAKER = 1.1, 1 / 1.1                   # A1111's, for each pair of brackets
HEAVIEST = 100.0                                  # 2 is much already; beyond this a state is nothing but its weight
SIGN = re.compile(r"\\[\\()\[\]:|]|[^\\()\[\]:|]+|.", re.DOTALL)
NUMBER = re.compile(r"\s*[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})\s*")
BREAK = re.compile(r"\bBREAK\b")
OPENED_BY = {")": "(", "]": "["}


class Piece(NamedTuple):
    """Text, and how heavy it is."""

    text: str
    weight: float


Reading = tuple[tuple[Piece, ...], ...]           # what is said at one time: the parts between the BREAKs


@dataclass(frozen=True)
class Bracket:
    """Says one of its options at a time: the second from a moment on, or where there is no moment each in turn."""

    options: tuple["Items", ...]
    weight: float = 1.0
    when: str | None = None                       # as written

    def at(self, step: int, steps: int) -> "Items":
        """What it says in a step; the first is 0."""
        place = step if self.when is None else step >= first_step(self.when, steps)
        return self.options[place % len(self.options)]


Items = Sequence[str | Bracket]


@dataclass(frozen=True)
class Prompt:
    """A prompt taken apart; `loose` are the places of brackets without a partner, which stand for themselves."""

    text: str
    items: Items
    loose: tuple[int, ...]
    moments: frozenset[str]                       # of all turns from one thing to another, as written
    periods: frozenset[int]                       # of all alternations

    def readings(self, steps: int) -> list[Reading]:
        """What it says in each of so many steps. Equal times share one Reading; a weight beyond ±100 is an error."""
        turns = sorted(first_step(when, steps) for when in self.moments)
        times = [(bisect_right(turns, step), *(step % n for n in self.periods)) for step in range(steps)]
        first = {time: step for step, time in reversed(list(enumerate(times)))}
        read = {time: self._reading(step, steps) for time, step in first.items()}
        return [read[time] for time in times]

    def _reading(self, step: int, steps: int) -> Reading:
        """What it says in one step. Neighbours of one weight are one piece, so a prompt without weights is whole."""
        parts: list[list[Piece]] = [[]]
        for weight, run in groupby(self._said(step, steps), lambda piece: piece[1]):
            first, *others = BREAK.split("".join(text for text, _ in run))
            parts[-1].append(Piece(first, weight))
            parts += [[Piece(other, weight)] for other in others]
        if len(parts) > 1 and not any(piece.text.strip() for piece in parts[-1]):
            parts.pop()                           # as in A1111, a last BREAK with nothing after it does nothing
        return tuple(tuple(piece for piece in part if piece.text) for part in parts)

    def _said(self, step: int, steps: int) -> Iterator[tuple[str, float]]:
        """The texts in order, each with the product of the weights around it. No recursion: brackets may be deep."""
        open_brackets = [(iter(self.items), 1.0)]
        while open_brackets:
            rest, weight = open_brackets[-1]
            item = next(rest, None)
            while isinstance(item, str):
                yield item, weight
                item = next(rest, None)
            if item is None:
                open_brackets.pop()
            else:
                open_brackets.append((iter(item.at(step, steps)), self._allowed(weight * item.weight)))

    def _allowed(self, weight: float) -> float:
        """A weight, if it is one that can be meant."""
        if abs(weight) <= HEAVIEST:
            return weight
        raise MinisdError(f"a prompt with a weight of {weight:g}", f"{self.text[:60]!r}",
                          "brackets within brackets multiply",
                          rf"give -{HEAVIEST:g} to {HEAVIEST:g}; \( and \[ are brackets as they stand", USAGE)


def first_step(when: str, steps: int) -> int:
    """The step in which a turn has been taken: "5" is after five, "0.5" after half of them (rounded down)."""
    return int(float(when) * steps) if "." in when else int(when)


def read(prompt: str) -> Prompt:
    """A prompt taken apart; any text is one."""
    signs = SIGN.findall(prompt)
    closing = partners(signs)
    opening = set(closing.values())
    moments, periods, loose, place = set(), set(), [], 0
    frames: list[tuple[list[str | Bracket], list[int]]] = [([], [])]        # what stands in each open bracket; its : |
    for number, sign in enumerate(signs):
        items, marks = frames[-1]
        if number in opening:
            frames.append(([], []))
        elif number in closing:
            frames.pop()
            bracket = bracket_of(signs[closing[number]], items, marks)
            frames[-1][0].append(bracket)
            moments.update([bracket.when] if bracket.when else [])
            periods.update([len(bracket.options)] if not bracket.when and len(bracket.options) > 1 else [])
        else:
            if sign in (":", "|"):
                marks.append(len(items))
            elif sign in ("(", ")", "[", "]"):
                loose.append(place)
            items.append(sign[-1] if len(sign) == 2 and sign[0] == "\\" else sign)
        place += len(sign)
    return Prompt(prompt, frames[0][0], tuple(loose), frozenset(moments), frozenset(periods))


def partners(signs: Sequence[str]) -> dict[int, int]:
    """Place of each closing bracket -> place of its opening one: the nearest of its kind that is still open.

    Those opened in between have no partner, so that brackets never cross.
    """
    found: dict[int, int] = {}
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    for number, sign in enumerate(signs):
        if sign in waiting:
            waiting[sign].append(number)
        elif sign in OPENED_BY and waiting[OPENED_BY[sign]]:
            found[number] = waiting[OPENED_BY[sign]].pop()
            for places in waiting.values():
                del places[bisect_left(places, found[number]):]
    return found


def bracket_of(opener: str, items: list[str | Bracket], marks: list[int]) -> Bracket:
    """A pair of brackets by what stands in it; `marks` are the places of its own colons and bars."""
    signs = [items[mark] for mark in marks]
    number = number_at_end(items, marks)
    if opener == "(":
        return Bracket((items,), STRONGER) if number is None else Bracket((items[:-2],), float(number))
    if signs and set(signs) == {"|"}:
        ends = [*marks, len(items)]
        return Bracket(tuple(items[begin:end] for begin, end in zip([0, *(m + 1 for m in marks)], ends, strict=True)))
    if number is not None and signs == [":"]:
        return Bracket(((), items[:-2]), when=number)
    if number is not None and signs == [":", ":"]:
        return Bracket((items[:marks[0]], items[marks[0] + 1:-2]), when=number)
    return Bracket((items,), WEAKER)


def number_at_end(items: Sequence[str | Bracket], marks: Sequence[int]) -> str | None:
    """The number after the last colon, where there is nothing else."""
    if not marks or marks[-1] != len(items) - 2 or items[-2] != ":":
        return None
    last = items[-1]
    return last.strip() if isinstance(last, str) and NUMBER.fullmatch(last) else None
