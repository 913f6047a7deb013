"""Byte-pair encoding of single words: the table, and the merging against a plain statement of the algorithm."""

import random
import time
from importlib import resources
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisd.bpe import (
    BYTES,
    MERGES_FILE,
    MOST_MERGES,
    Table,
    byte_letters,
    load_spelling,
    load_table,
    merge,
    read_merges,
    word_ids,
)
from minisd.errors import BAD_FILE, MinisdError

TABLE = load_table(MOST_MERGES)
SPELLING = load_spelling(MOST_MERGES)


def merge_plainly(ids: list[int], table: Table) -> list[int]:
    """While any pair can be merged: find the best, and merge it everywhere from left to right."""
    while made := [table.merged[pair] for pair in pairwise(ids) if pair in table.merged]:
        best, merged = min(made), []
        for token in ids:
            if merged and (merged[-1], token) == table.halves[best]:
                merged[-1] = best
            else:
                merged.append(token)
        ids = merged
    return ids


def test_table_is_one_to_one_and_every_merge_comes_after_its_halves() -> None:
    assert len(TABLE.merged) == MOST_MERGES
    assert len(TABLE.halves) == len(SPELLING) == len(set(SPELLING)) == 2 * BYTES + MOST_MERGES
    assert all(TABLE.halves[token] == pair for pair, token in TABLE.merged.items())
    assert all(max(pair) < token for pair, token in TABLE.merged.items())
    assert not any(b" " in SPELLING[left] for left, _ in TABLE.merged)  # a word's end has nothing after it


def test_every_byte_has_one_letter() -> None:
    letters = byte_letters()
    assert sorted(letters) == list(range(BYTES))
    assert len(set(letters.values())) == BYTES
    assert not any(letter.isspace() for letter in letters.values())


def test_a_smaller_table_is_the_beginning_of_the_whole() -> None:
    small = load_table(1000)
    assert load_spelling(1000) == SPELLING[: 2 * BYTES + 1000]
    assert small.merged.items() <= TABLE.merged.items()


@given(st.binary(min_size=1, max_size=60))
def test_merging_bytes_follows_the_plain_algorithm(word: bytes) -> None:
    assert merge(word_ids(word), TABLE) == merge_plainly(word_ids(word), TABLE)


@pytest.mark.parametrize("merges", [0, 1, 7, 300, 5000, MOST_MERGES])
@given(word=st.text("aaabehilnorst", min_size=1, max_size=120))
def test_merging_letters_follows_the_plain_algorithm(merges: int, word: str) -> None:
    table, ids = load_table(merges), word_ids(word.encode())
    merged = merge(ids, table)
    assert merged == merge_plainly(ids, table)
    assert b"".join(load_spelling(merges)[token] for token in merged) == word.encode() + b" "


@pytest.mark.parametrize("letters", ["a", "ab", "abcdefghijklmnopqrstuvwxyz"])
def test_time_grows_with_the_length_of_a_word_not_with_its_square(letters: str) -> None:
    draw = random.Random(0)
    seconds = []
    for size in (20_000, 320_000):
        ids = word_ids("".join(draw.choices(letters, k=size)).encode())
        began = time.process_time()
        merge(ids, TABLE)
        seconds.append(time.process_time() - began)
    # 16 times the length; n log n with a colder cache measures 20 to 40, the square would be 256
    assert seconds[1] < 100 * seconds[0], f"{seconds[0]:.3f} s for 20,000 bytes but {seconds[1]:.3f} s for 320,000"


def damaged_merges() -> dict[str, bytes]:
    data = (resources.files("minisd") / "assets" / MERGES_FILE).read_bytes()
    flipped = bytearray(data)
    flipped[700_000] ^= 1
    return {
        "cut off": data[:-1],
        "one bit": bytes(flipped),
        "trailing byte": data + b"\n",
        "byte order mark": b"\xef\xbb\xbf" + data,
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
    }


@pytest.mark.parametrize("damage", damaged_merges())
def test_a_damaged_merge_list_is_refused(damage: str) -> None:
    with pytest.raises(MinisdError, match="damaged") as caught:
        read_merges(damaged_merges()[damage], 10)
    assert caught.value.code == BAD_FILE


def test_the_table_loads_in_a_tenth_of_a_second() -> None:
    seconds = []
    for _ in range(5):
        began = time.process_time()
        load_table.__wrapped__(MOST_MERGES)
        seconds.append(time.process_time() - began)
    assert min(seconds) <= 0.1, f"{1e3 * min(seconds):.0f} ms"
