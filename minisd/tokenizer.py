"""CLIP's tokenizer: byte-level byte-pair encoding, cut into windows that the text transformer reads.

Text is cleaned and split into words, a word becomes its UTF-8 bytes (the last one marked as the word's end), and
neighbours are merged in the order in which the merges were learnt, until no merge applies.
"""

import gzip
import hashlib
import html
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from heapq import heapify, heappop, heappush
from importlib import resources
from itertools import islice
from typing import Literal, NamedTuple

import ftfy
import regex

from minisd.errors import BAD_FILE, USAGE, MinisdError

MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

BYTES = 256
SPECIAL = 2  # start and end of text: always the last two ids
FULL_VOCAB = 49408
LONGEST_CACHED = 64  # characters; longer words are rare, and would make the cache's memory unbounded

START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
# html.unescape hands a decimal reference to int(), which refuses more than 4,300 digits.
ENDLESS_REFERENCE = regex.compile(r"&#[0-9]{1000,};?")


class Table(NamedTuple):
    """The vocabulary: what each id spells, which pair of ids makes which id, and the pair each merged id is made of."""

    spelling: list[bytes]
    merged: dict[tuple[int, int], int]
    halves: dict[int, tuple[int, int]]


def _byte_letters() -> str:
    """The merge list's letter for each of the first 256 ids: printable bytes stand for themselves and come first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return "".join(map(chr, printable)) + "".join(chr(BYTES + n) for n in range(BYTES - len(printable)))


def _byte_values() -> list[int]:
    """The byte that each of the first 256 ids stands for."""
    plain = [ord(letter) for letter in _byte_letters() if ord(letter) < BYTES]
    return plain + [byte for byte in range(BYTES) if byte not in plain]


BYTE_ID = {byte: i for i, byte in enumerate(_byte_values())}


def read_merges(data: bytes, count: int) -> list[str]:
    """The first `count` merges, best first, each two spellings with a space between; the file must be CLIP's own."""
    if hashlib.sha256(data).hexdigest() != MERGES_SHA256:
        raise MinisdError(
            what="the tokenizer's merge list is damaged",
            where=f"minisd/assets/{MERGES_FILE}",
            why=f"its sha256 is not {MERGES_SHA256[:16]}…: {len(data):,} bytes where CLIP's has 1,356,917",
            remedy="install minisd again",
            code=BAD_FILE,
        )
    lines = gzip.decompress(data).decode("utf-8").split("\n", count + 1)
    return lines[1 : count + 1]  # the first line is a version


@cache
def _table(vocab_size: int) -> Table:
    letters = _byte_letters()
    ids = {spelled: i for i, spelled in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    merged = {}
    data = (resources.files("minisd") / "assets" / MERGES_FILE).read_bytes()
    for token, line in enumerate(read_merges(data, vocab_size - len(ids) - SPECIAL), start=len(ids)):
        left, right = line.split()
        merged[ids[left], ids[right]] = token
        ids[left + right] = token
    spelling = [bytes([byte]) for byte in _byte_values()]
    spelling += [one + b" " for one in spelling]
    for left_id, right_id in merged:
        spelling.append(spelling[left_id] + spelling[right_id])
    return Table(spelling, merged, {token: pair for pair, token in merged.items()})


def merge(ids: list[int], table: Table) -> list[int]:
    """Apply the merges to one word: lowest id first, from left to right; n log n, however long the word.

    A merged token is learnt after its halves, so ids only rise while merging, and each id need be visited once.
    """
    ids = ids[:]
    end = len(ids)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    places: dict[int, list[int]] = {}  # token -> where the left half of such a pair stood when it was seen
    for i, pair in enumerate(zip(ids, islice(ids, 1, None), strict=False)):
        if pair in table.merged:
            places.setdefault(table.merged[pair], []).append(i)
    order = list(places)
    heapify(order)

    def note(i: int, j: int) -> None:
        token = table.merged.get((ids[i], ids[j]), -1)
        if token in places:
            places[token].append(i)
        elif token >= 0:
            places[token] = [i]
            heappush(order, token)

    while order:
        token = heappop(order)
        left, right = table.halves[token]
        for i in sorted(places.pop(token)):
            j = after[i]
            if ids[i] != left or j == end or ids[j] != right:
                continue  # a neighbour was merged away in the meantime
            ids[i], ids[j] = token, -1
            after[i] = after[j]
            if before[i] >= 0:
                note(before[i], i)
            if after[i] < end:
                before[after[i]] = i
                note(i, after[i])
    return [token for token in ids if token >= 0]


def _word_ids(word: str, vocab_size: int) -> list[int]:
    if word == START_TEXT:
        return [vocab_size - 2]
    if word == END_TEXT:
        return [vocab_size - 1]
    ids = [BYTE_ID[byte] for byte in word.encode("utf-8", errors="replace")]
    ids[-1] += BYTES
    return merge(ids, _table(vocab_size))


_cached_word_ids = lru_cache(maxsize=1 << 16)(_word_ids)


def clean(text: str) -> str:
    """Mend mojibake, unescape HTML twice (captions from the web are often escaped twice), squeeze spaces, lower."""
    text = ftfy.fix_text(text)
    for _ in range(2):
        text = html.unescape(ENDLESS_REFERENCE.sub("\ufffd", text))
    return " ".join(text.split()).lower()


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. `vocab_size` below CLIP's own keeps the first merges, and start and end as the last two ids.

    `pad` is what fills a window after the end: the end token again (SD1), or id 0 (SD2's OpenCLIP).
    """

    vocab_size: int = FULL_VOCAB
    window: int = 77
    pad: Literal["end", "zero"] = "end"

    def __post_init__(self) -> None:
        smallest = 2 * BYTES + SPECIAL
        if not smallest <= self.vocab_size <= FULL_VOCAB:
            raise _refused(
                f"vocab_size {self.vocab_size} for CLIP's merge list", f"{smallest} to {FULL_VOCAB}"
            )
        if self.window <= SPECIAL:
            raise _refused(
                f"a window of {self.window} tokens", f"at least {SPECIAL + 1}: start, a token, end"
            )
        if self.pad not in ("end", "zero"):
            raise _refused(f"pad {self.pad!r}", '"end" or "zero"')

    @property
    def start(self) -> int:
        return self.vocab_size - 2

    @property
    def end(self) -> int:
        return self.vocab_size - 1

    @property
    def room(self) -> int:
        """How many tokens of text one window holds."""
        return self.window - SPECIAL

    def tokenize(self, text: str) -> list[int]:
        """All the ids of a text, without start, end and padding."""
        ids: list[int] = []
        for word in WORD.findall(clean(text)):
            ids += (_cached_word_ids if len(word) <= LONGEST_CACHED else _word_ids)(word, self.vocab_size)
        return ids

    def frame(self, ids: list[int]) -> list[int]:
        """One window: start, the ids, end, padding."""
        if len(ids) > self.room:
            raise _refused(f"{len(ids)} tokens in a window of {self.window}", f"at most {self.room}")
        filler = self.end if self.pad == "end" else 0
        return [self.start, *ids, self.end, *[filler] * (self.room - len(ids))]

    def encode(self, text: str, truncate: bool = False) -> list[int]:
        """One window; a text that does not fit is an error, unless the caller cuts knowingly (and counts)."""
        ids = self.tokenize(text)
        if len(ids) > self.room and not truncate:
            lost = self.decode(ids[self.room :])
            raise MinisdError(
                what=f"the text has {len(ids)} tokens, a window holds {self.room}",
                where=f"from “{lost[:60]}{'…' if len(lost) > 60 else ''}” on",
                why="the rest would be cut off",
                remedy="shorten it, or spread it over several windows (Tokenizer.windows)",
                code=USAGE,
            )
        return self.frame(ids[: self.room])

    def windows(self, text: str) -> list[list[int]]:
        """As many windows as the text needs, at least one, each full but the last."""
        ids = self.tokenize(text)
        return [self.frame(ids[i : i + self.room]) for i in range(0, max(len(ids), 1), self.room)]

    def decode(self, ids: Iterable[int]) -> str:
        """The cleaned text that the ids spell, words apart, up to the first end token."""
        spelling = _table(self.vocab_size).spelling
        text = b""
        for i in ids:
            if i == self.end:
                break
            if not 0 <= i < self.vocab_size:
                raise _refused(f"token id {i}", f"0 to {self.vocab_size - 1}")
            text += b"" if i == self.start else spelling[i]
        return text.decode("utf-8", errors="replace").rstrip(" ")


def _refused(what: str, allowed: str) -> MinisdError:
    return MinisdError(what=what, where="Tokenizer", remedy=f"give {allowed}", code=USAGE)
