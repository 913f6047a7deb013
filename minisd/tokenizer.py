"""CLIP's tokenizer: text is cleaned, split into words, encoded by byte pairs, and cut into windows."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Literal

import ftfy
import regex

from minisd.bpe import BYTES, MOST_MERGES, load_spelling, load_table, merge, word_ids
from minisd.config import Word
from minisd.errors import USAGE, MinisdError

SPECIAL = 2  # start and end of text: always the last two ids
SMALLEST_VOCAB = 2 * BYTES + SPECIAL
FULL_VOCAB = SMALLEST_VOCAB + MOST_MERGES  # 49,408
LONGEST_CACHED = 64  # characters; longer words are rare, and would make the cache's memory unbounded

START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
# html.unescape hands a decimal reference to int(), which refuses more than 4,300 digits.
ENDLESS_REFERENCE = regex.compile(r"&#[0-9]{1000,};?")


def clean(text: str) -> str:
    """Mend mojibake, unescape HTML twice (captions from the web are often escaped twice), squeeze, lower."""
    text = ftfy.fix_text(text)
    for _ in range(2):
        text = html.unescape(ENDLESS_REFERENCE.sub("\ufffd", text))
    return " ".join(text.split()).lower()


def _encode_word(word: str, vocab_size: int) -> list[int]:
    if word == START_TEXT:
        return [vocab_size - 2]
    if word == END_TEXT:
        return [vocab_size - 1]
    return merge(word_ids(word.encode("utf-8", errors="replace")), load_table(vocab_size - SMALLEST_VOCAB))


_encode_short_word = lru_cache(maxsize=1 << 16)(_encode_word)


@lru_cache(maxsize=64)
def _learnt(words: tuple[Word, ...]) -> regex.Pattern[str]:
    """Finds learnt words in a cleaned text, of two that begin alike the longer; letters next to one make it another."""
    each = sorted((word.text for word in words), key=len, reverse=True)
    return regex.compile("|".join(
        (r"(?<!\w)" if text[0].isalnum() else "") + regex.escape(text) + (r"(?!\w)" if text[-1].isalnum() else "")
        for text in each))


def learnt_in(text: str, words: tuple[Word, ...]) -> set[str]:
    """Which of these words a text says."""
    return set(_learnt(words).findall(clean(text)))


def _refused(what: str, allowed: str) -> MinisdError:
    return MinisdError(what=what, where="Tokenizer", remedy=f"give {allowed}", code=USAGE)


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. A smaller `vocab_size` keeps the first merges; start and end are last.

    `pad` is what fills a window after its end: the end token again (SD1), or id 0 (SD2's OpenCLIP). The ids of `words`,
    which have been learnt later, follow the vocabulary's.
    """

    vocab_size: int = FULL_VOCAB
    window: int = 77
    pad: Literal["end", "zero"] = "end"
    words: tuple[Word, ...] = ()

    def __post_init__(self) -> None:
        if not SMALLEST_VOCAB <= self.vocab_size <= FULL_VOCAB:
            raise _refused(f"a vocabulary of {self.vocab_size} tokens", f"{SMALLEST_VOCAB} to {FULL_VOCAB}")
        if self.window <= SPECIAL:
            raise _refused(f"a window of {self.window} tokens", f"at least {SPECIAL + 1}")
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
        cleaned = clean(text)
        if not self.words:
            return self._spelt(cleaned)
        ids: list[int] = []
        at, learnt = 0, self.learnt
        for found in _learnt(self.words).finditer(cleaned):
            ids += [*self._spelt(cleaned[at:found.start()]), *learnt[found[0]]]
            at = found.end()
        return ids + self._spelt(cleaned[at:])

    def _spelt(self, cleaned: str) -> list[int]:
        """The ids of a cleaned text in which no word is a learnt one."""
        ids: list[int] = []
        for word in WORD.findall(cleaned):
            encode = _encode_short_word if len(word) <= LONGEST_CACHED else _encode_word
            ids += encode(word, self.vocab_size)
        return ids

    @property
    def learnt(self) -> dict[str, range]:
        """The ids of the words learnt later."""
        ends = list(accumulate((word.vectors for word in self.words), initial=self.vocab_size))
        return {word.text: range(*ids) for word, ids in zip(self.words, pairwise(ends), strict=True)}

    def frame(self, ids: list[int]) -> list[int]:
        """One window: start, the ids, end, padding."""
        if len(ids) > self.room:
            raise _refused(f"{len(ids)} tokens for a window of {self.window}", f"at most {self.room}")
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
        spelling = load_spelling(self.vocab_size - SMALLEST_VOCAB)
        learnt = {i: f"{text} ".encode() if i == ids[-1] else b"" for text, ids in self.learnt.items() for i in ids}
        parts: list[bytes] = []
        for i in ids:
            if i in learnt:
                parts.append(learnt[i])
                continue
            if not 0 <= i < self.vocab_size:
                raise _refused(f"token id {i}", f"0 to {self.vocab_size + len(learnt) - 1}")
            if i == self.end:
                break
            if i != self.start:
                parts.append(spelling[i])
        return b"".join(parts).decode("utf-8", errors="replace").rstrip(" ")
