"""Who a process is among several, and what of a list is its own."""

import pytest

from minisd.errors import DISTRIBUTED, MinisdError
from minisd.shares import Share, share


def test_a_process_that_nobody_told_is_alone() -> None:
    assert share({}) == share({"LOCAL_RANK": "3"}) == Share() and Share().alone and Share().name == ""
    assert list(Share().of("abc")) == ["a", "b", "c"]


def test_what_torchrun_says() -> None:
    us = share({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert us == Share(5, 8, 1) and not us.alone and us.name == "rank 5: "
    assert share({"RANK": "1", "WORLD_SIZE": "2"}).local == 1
    assert share({"RANK": "0", "WORLD_SIZE": "1"}).alone


@pytest.mark.parametrize("world", [1, 2, 3, 7, 20])
def test_shares_are_the_whole_without_overlap_and_even(world: int) -> None:
    parts = [Share(rank, world).of(range(13)) for rank in range(world)]
    assert sorted(n for part in parts for n in part) == list(range(13))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("env", [
    {"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "0"},
    {"RANK": "-1", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "1e3"},
    {"RANK": "", "WORLD_SIZE": "2"}, {"RANK": "²", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "9" * 9},
    {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "?"}])
def test_nonsense_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(MinisdError) as fault:
        share(env)
    assert fault.value.code == DISTRIBUTED and "the environment" in str(fault.value)
