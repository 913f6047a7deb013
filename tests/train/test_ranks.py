"""Several processes that train one line: the same bits as one process makes, whoever dies or joins."""

import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from line import CFG, Line, prepared, rows, saved

from minisd.errors import DISTRIBUTED, INTERRUPTED
from minisd.train import loop, resume
from minisd.train.ranks import ALONE, buckets, joined
from minisd.train.replicated import Replicated
from minisd.train.stages import locked

TWO = replace(CFG, steps=6, batch=2, accumulate=1, save_every=2, preview_every=3)


@pytest.fixture
def together(ranks):
    """Exit codes of some processes that run the same line, each with its own task."""
    return lambda folder, cfg, *tasks, how="auto": ranks(*(partial(line, folder, cfg, task, how) for task in tasks))


def line(folder, cfg, task, how="auto"):
    with joined() as ranks, locked(folder, ranks):
        run = prepared(folder, cfg, task, {}, partial(Replicated, ranks=ranks))
        resume.resume(run, how)
        loop.fit(run)


def test_alone_nothing_is_sent():
    tensor = torch.ones(2)
    ALONE.add([tensor])
    assert tensor.tolist() == [1, 1] and ALONE.total({"a": 2.0}) == {"a": 2.0}
    assert ALONE.any(True) and not ALONE.any(False) and ALONE.from_first("x") == "x" and ALONE.first


def test_buckets_keep_the_order_and_the_whole():
    tensors = [torch.zeros(n) for n in (1 << 23, 1 << 23, 5, 1 << 25, 7)]
    assert [[t.numel() for t in group] for group in buckets(tensors)] == [[1 << 23, 1 << 23], [5, 1 << 25], [7]]


def test_two_ranks_make_the_steps_of_one_with_twice_the_passes(together, tmp_path):
    """Losses, weights, average and moments, to the bit; each rank has every second pass."""
    assert together(tmp_path / "two", TWO, Line(), Line()) == [0, 0]
    line(tmp_path / "one", replace(TWO, accumulate=2), Line())
    assert saved(tmp_path / "two") == saved(tmp_path / "one")
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


def test_bfloat16_weights_are_rounded_alike_on_every_rank(together, tmp_path):
    rounded = replace(TWO, dtype="bf16", weights="bf16")
    assert together(tmp_path / "two", rounded, Line(), Line()) == [0, 0]
    line(tmp_path / "one", replace(rounded, accumulate=2), Line())
    assert saved(tmp_path / "two") == saved(tmp_path / "one")


def test_a_run_goes_on_with_another_number_of_ranks(together, tmp_path):
    assert together(tmp_path / "x", replace(TWO, steps=4), Line(), Line()) == [0, 0]
    line(tmp_path / "x", replace(TWO, accumulate=2), Line())
    line(tmp_path / "one", replace(TWO, accumulate=2), Line())
    assert saved(tmp_path / "x") == saved(tmp_path / "one")
    assert together(tmp_path / "x", replace(TWO, steps=8), Line(), Line()) == [0, 0]
    line(tmp_path / "one", replace(TWO, accumulate=2, steps=8), Line())
    assert saved(tmp_path / "x", 8) == saved(tmp_path / "one", 8)


def die(task, fit):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_rank_ends_the_others_with_their_own_code(together, tmp_path, capfd, dead):
    tasks = [Line(), Line()]
    tasks[dead] = Line({3: die})
    codes = together(tmp_path, TWO, *tasks)
    assert codes[dead] == 256 - signal.SIGKILL and codes[1 - dead] == DISTRIBUTED
    assert "another rank is gone" in capfd.readouterr().err
    assert together(tmp_path, TWO, Line(), Line()) == [0, 0]


def test_a_signal_to_one_rank_stops_and_saves_all(together, tmp_path):
    def signalled(task, fit):
        os.kill(os.getpid(), signal.SIGTERM)
        return fit

    assert together(tmp_path, TWO, Line(), Line({2: signalled})) == [INTERRUPTED, INTERRUPTED]
    assert (tmp_path / "checkpoint-3").is_dir()
