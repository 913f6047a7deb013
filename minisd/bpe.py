"""Byte-pair encoding of one word with CLIP's merges (Sennrich et al. 2016, arXiv 1508.07909, over bytes).

Ids 0 to 255 are the bytes, 256 to 511 the same bytes ending a word, 512 + n is what the n-th merge makes.
"""

import gzip
import hashlib
from functools import cache
from heapq import heapify, heappop, heappush
from importlib import resources
from io import BytesIO
from itertools import islice, pairwise
from typing import NamedTuple

from minisd.errors import BAD_FILE, MinisdError

MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
BYTES = 256
MOST_MERGES = 48894  # the list goes on, but CLIP was trained with these


class Table(NamedTuple):
    """Which pair of ids makes which id, and its inverse (the first 512 ids are not made of anything)."""

    merged: dict[tuple[int, int], int]
    halves: list[tuple[int, int]]


def byte_letters() -> dict[int, str]:
    """Byte -> its letter in the merge list, in order of ids: printable bytes are themselves and first."""
    printable = [byte for first, last in ("!~", "¡¬", "®ÿ") for byte in range(ord(first), ord(last) + 1)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(BYTES + n) for n, byte in enumerate(others)}


BYTE_ID = {byte: i for i, byte in enumerate(byte_letters())}


def read_merges(data: bytes, count: int) -> list[str]:
    """The first `count` merges, best first, each two spellings and a space; the file must be CLIP's own."""
    if hashlib.sha256(data).hexdigest() != MERGES_SHA256:
        raise MinisdError(
            what="the tokenizer's merge list is damaged",
            where=f"minisd/assets/{MERGES_FILE}",
            why=f"it is not CLIP's: {len(data):,} bytes of 1,356,917, sha256 not {MERGES_SHA256[:16]}…",
            remedy="install minisd again",
            code=BAD_FILE,
        )
    with gzip.open(BytesIO(data), "rt", encoding="utf-8") as lines:
        return list(islice(lines, 1, count + 1))  # the first line is a version


@cache
def load_table(merges: int) -> Table:
    """The first `merges` merges as ids; read once per process."""
    data = (resources.files("minisd") / "assets" / MERGES_FILE).read_bytes()
    letters = list(byte_letters().values())
    ids = {spelled: i for i, spelled in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    merged = {}
    for token, line in enumerate(read_merges(data, merges), start=len(ids)):
        left, right = line.split()
        merged[ids[left], ids[right]] = token
        ids[left + right] = token
    return Table(merged, [(-1, -1)] * (2 * BYTES) + list(merged))


@cache
def load_spelling(merges: int) -> list[bytes]:
    """What each id spells; a space ends a word."""
    spelling = [bytes([byte]) for byte in BYTE_ID]
    spelling += [byte + b" " for byte in spelling]
    for left, right in load_table(merges).merged:
        spelling.append(spelling[left] + spelling[right])
    return spelling


def word_ids(word: bytes) -> list[int]:
    """The ids of a word's bytes before any merge."""
    ids = [BYTE_ID[byte] for byte in word]
    ids[-1] += BYTES
    return ids


def merge(ids: list[int], table: Table) -> list[int]:
    """Apply the merges to one word, best first and from left to right; n log n, however long the word.

    A token is learnt after its halves, so a merge only makes pairs worse than itself: each is visited once.
    """
    find, end = table.merged.get, len(ids)
    ids = [*ids, -1]  # merges with nothing; the neighbour after the last, and at index -1 before the first
    before, after = list(range(-1, end)), list(range(1, end + 2))
    places: dict[int, list[int]] = {}  # token -> where the left half of such a pair stood when it was seen
    for i, token in enumerate(map(find, pairwise(ids))):
        if token is not None:
            places.setdefault(token, []).append(i)
    order = list(places)
    heapify(order)

    def note(token: int, place: int) -> None:
        if token in places:
            places[token].append(place)
        else:
            places[token] = [place]
            heappush(order, token)

    while order:
        token = heappop(order)
        left, right = table.halves[token]
        for i in sorted(places.pop(token)):
            j = after[i]
            if ids[i] != left or ids[j] != right:
                continue  # a neighbour was merged away in the meantime
            h, k = before[i], after[j]
            ids[i], ids[j] = token, -1
            after[i], before[k] = k, i
            if (made := find((ids[h], token))) is not None:
                note(made, h)
            if (made := find((token, ids[k]))) is not None:
                note(made, i)
    return [token for token in ids if token >= 0]
