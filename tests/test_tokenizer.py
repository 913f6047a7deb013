"""The tokenizer against ids recorded from OpenAI's own, its windows, and what may never crash or be slow."""

import json
import pickle
import time
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minisd.errors import USAGE, MinisdError
from minisd.tokenizer import FULL_VOCAB, SMALLEST_VOCAB, Tokenizer, clean

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "tokenizer.json").read_text())
CASES: list[tuple[str, str, list[int]]] = [(kind, text, ids) for kind, text, ids in GOLDEN["cases"]]
CLIP = Tokenizer()
SMALL = Tokenizer(vocab_size=4096, window=20)

ANY_TEXT = st.text(st.characters())  # every code point, lone surrogates too
TOKENIZERS = st.builds(
    Tokenizer,
    vocab_size=st.sampled_from([SMALLEST_VOCAB, 600, 4096, FULL_VOCAB]),
    window=st.integers(3, 90),
    pad=st.sampled_from(["end", "zero"]),
)


def test_golden_has_at_least_500_different_strings() -> None:
    assert len({text for _, text, _ in CASES}) >= 500


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in CASES}))
def test_ids_equal_openai(kind: str) -> None:
    wrong = [
        f"{text!r}: ours {ours} {CLIP.decode(ours)!r}, OpenAI's {ids} {CLIP.decode(ids)!r}"
        for row, text, ids in CASES
        if row == kind and (ours := CLIP.tokenize(text)) != ids
    ]
    assert not wrong, "\n".join([f"{len(wrong)} strings differ; recorded with {GOLDEN['made_with']}", *wrong[:10]])


def test_known_ids() -> None:
    assert CLIP.encode("a red apple")[:6] == [49406, 320, 736, 3055, 49407, 49407]
    assert CLIP.encode("") == [49406] + [49407] * 76
    assert (CLIP.start, CLIP.end, CLIP.room) == (49406, 49407, 75)


def test_padding_is_the_end_token_or_zero() -> None:
    assert Tokenizer(window=6).encode("apple") == [49406, 3055, 49407, 49407, 49407, 49407]
    assert Tokenizer(window=6, pad="zero").encode("apple") == [49406, 3055, 49407, 0, 0, 0]


def test_a_small_vocabulary_keeps_clips_ids_and_spells_the_rest() -> None:
    assert (SMALL.start, SMALL.end) == (4094, 4095)
    assert SMALL.tokenize("a red apple") == [320, 736, 3055]  # early merges, so the very same
    assert max(SMALL.tokenize("an astronaut")) < SMALL.start
    assert SMALL.tokenize("a<|endoftext|>") == [320, SMALL.end]


@given(TOKENIZERS, ANY_TEXT)
@example(CLIP, "\ud83d")
@example(CLIP, "\x00")
@example(CLIP, "&#" + "9" * 6000 + ";")
@example(CLIP, "&amp;#" + "9" * 6000)
def test_any_text_gives_windows_of_valid_ids(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.tokenize(text)
    windows = tokenizer.windows(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert [i for window in windows for i in window[1 : 1 + tokenizer.room]][: len(ids)] == ids
    assert {len(window) for window in windows} == {tokenizer.window}
    assert {window[0] for window in windows} == {tokenizer.start}
    assert len(windows) == max(1, -(-len(ids) // tokenizer.room))
    assert tokenizer.encode(text, truncate=True) == windows[0]


@given(TOKENIZERS, ANY_TEXT.filter(lambda text: "<|" not in clean(text)))
@example(CLIP, "x\u0345")  # an iota subscript that stands alone is no word to OpenAI's pattern either
def test_decoding_gives_the_cleaned_text_back(tokenizer: Tokenizer, text: str) -> None:
    spelt = tokenizer.decode(tokenizer.tokenize(text))
    assert spelt.replace(" ", "") == clean(text).replace(" ", "").replace("\u0345", "")


@given(TOKENIZERS, st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20)).map(" ".join))
def test_plain_words_survive_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.tokenize(text)
    assert tokenizer.decode([tokenizer.start, *ids, tokenizer.end, 5, 6]) == text
    assert tokenizer.tokenize(tokenizer.decode(ids)) == ids


def test_a_text_that_does_not_fit_is_never_cut_silently() -> None:
    assert CLIP.encode("apple " * 75) == [49406, *[3055] * 75, 49407]
    with pytest.raises(MinisdError) as caught:
        CLIP.encode("apple " * 75 + "tree house")
    assert caught.value.code == USAGE
    assert "77 tokens" in caught.value.what and "75" in caught.value.what
    assert "tree house" in caught.value.where
    assert CLIP.encode("apple " * 75 + "tree house", truncate=True) == CLIP.encode("apple " * 75)


@pytest.mark.parametrize(("count", "windows"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3), (5000, 67)])
def test_long_prompts_take_as_many_windows_as_they_need(count: int, windows: int) -> None:
    assert len(CLIP.windows("apple " * count)) == windows


def test_it_is_immutable_and_travels_between_processes() -> None:
    with pytest.raises(FrozenInstanceError):
        CLIP.window = 5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(SMALL)) == SMALL
    assert {SMALL: 1}[Tokenizer(4096, 20)] == 1


@pytest.mark.parametrize("options", [{"vocab_size": 513}, {"vocab_size": 49409}, {"window": 2}, {"pad": "none"}])
def test_impossible_options_are_refused_with_the_allowed_values(options: dict[str, object]) -> None:
    with pytest.raises(MinisdError) as caught:
        Tokenizer(**options)  # type: ignore[arg-type]
    assert caught.value.code == USAGE
    assert caught.value.remedy.startswith("give ")


@pytest.mark.parametrize("ids", [[-1], [49408], [320, 10**9]])
def test_decoding_refuses_ids_that_do_not_exist(ids: list[int]) -> None:
    with pytest.raises(MinisdError, match="token id"):
        CLIP.decode(ids)


def test_framing_refuses_more_ids_than_there_is_room() -> None:
    with pytest.raises(MinisdError, match="76 tokens"):
        CLIP.frame([320] * 76)


MEGABYTE = 1_000_000
LONG = {
    "english": "The quick brown fox, isn't it? A photo of 3 red apples on a table; golden hour. " * 12_000,
    "awkward": " ".join(text for _, text, _ in CASES) * 70,
    "one letter": "a" * MEGABYTE,
    "spaces": " " * MEGABYTE,
    "numbers": "7 " * (MEGABYTE // 2),
    "ampersands": "&" * MEGABYTE,
    "mojibake": "Ã©" * (MEGABYTE // 4),
    "emoji": "😀 " * (MEGABYTE // 5),
    "surrogates": "\ud83d" * (MEGABYTE // 3),
    "escapes": "\x1b[" * (MEGABYTE // 2),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_megabyte_takes_a_second_of_text_and_never_long(kind: str) -> None:
    text, limit = LONG[kind], 1 if kind == "english" else 4  # a quadratic step would take minutes
    assert 0.9 * MEGABYTE < len(text.encode("utf-8", "surrogatepass")) <= MEGABYTE
    began = time.process_time()
    CLIP.tokenize(text)
    seconds = time.process_time() - began
    assert seconds <= limit, f"{seconds:.2f} s"
