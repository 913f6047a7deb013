"""Shares of the terms in a gradient, in closed form; spikes; and both in the loop, over a restart too."""

import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from line import CFG, Line, fit, rows, start

from minisd.errors import NUMERICAL, MinisdError
from minisd.train.gradients import is_spike, shares, usual_norm


def test_shares_are_those_of_the_norms():
    a, b = (torch.tensor(value, requires_grad=True) for value in ([1.0, 2.0], 3.0))
    losses = {"one": 3 * a[0] + 4 * a[1], "two": 15 * b, "three": (a * 0).sum(),
              "none": torch.zeros((), requires_grad=True)}
    found = shares(losses, [a, b])
    assert found == pytest.approx({"share/one": 0.25, "share/two": 0.75, "share/three": 0, "share/none": 0})
    assert a.grad is None and b.grad is None
    sum(losses.values()).backward()                # the graph is still there
    assert a.grad.tolist() == [3, 4]


def test_nothing_has_a_share_of_nothing():
    a = torch.ones((), requires_grad=True)
    assert shares({"x": 0 * a}, [a]) == {"share/x": 0}


def test_the_usual_norm_is_a_geometric_mean():
    usual = 0.0
    for n, norm in enumerate((1.0, 10.0, 100.0)):
        usual = usual_norm(norm, usual, n)
    assert usual == pytest.approx(10)
    for n in range(1000):
        usual = usual_norm(5.0, usual, n)
    assert usual == pytest.approx(5, rel=0.01)
    assert math.isfinite(usual_norm(0.0, 1.0, 3))


@pytest.mark.parametrize("norm, seen, factor, spike", [
    (11, 20, 10, True), (9, 20, 10, False), (1e9, 19, 10, False), (1e9, 20, 0, False)])
def test_what_is_a_spike(norm, seen, factor, spike):
    assert is_spike(norm, 1.0, seen, factor) == spike


LONG = replace(CFG, steps=30, spike=20.0, save_every=5, preview_every=0, shares_every=3)


def burst(task, fit):
    return 1e4 * fit + 1e4 * task.layer.bias.sum()


def test_a_spike_is_skipped_and_counted_and_the_run_goes_on(tmp_path):
    run = fit(tmp_path / "a", LONG, Line({25: burst}))
    found = {row["step"]: row for row in rows(tmp_path / "a")}
    assert found[26]["skipped"] == 1 and "fit" not in found[26] and "skipped" not in found[27]
    assert abs(run.task.layer.bias.item()) < 10
    with pytest.raises(MinisdError, match="2 skipped steps in a row") as error:
        fit(tmp_path / "b", replace(LONG, max_bad_steps=2), Line({25: burst, 26: burst}))
    assert error.value.code == NUMERICAL and "the gradient is usually" in error.value.why


def test_shares_are_logged_when_they_are_due(tmp_path):
    fit(tmp_path, LONG)
    logged = {row["step"]: row for row in rows(tmp_path) if "fit" in row}
    assert [step for step, row in logged.items() if "share/fit" in row] == list(range(3, 31, 3))
    assert all(row["share/fit"] + row["share/small"] == pytest.approx(1, abs=1e-5)
               for row in logged.values() if "share/fit" in row)


def test_spikes_are_known_by_the_same_measure_after_a_restart(tmp_path, child):
    """30 steps are 17, a kill and the rest, to the bit; so what is usual was saved."""
    events = {25: burst}
    fit(tmp_path / "whole", LONG, Line(events))
    cut = events | {17: lambda task, fit: os.kill(os.getpid(), signal.SIGKILL)}
    assert child(lambda: fit(tmp_path / "cut", LONG, Line(cut))) == -signal.SIGKILL
    again = start(tmp_path / "cut", LONG, Line(events))
    assert again.usual > 0
    fit(tmp_path / "cut", LONG, Line(events))
    assert (tmp_path / "whole" / "checkpoint-30" / "params.safetensors").read_bytes() == (
        tmp_path / "cut" / "checkpoint-30" / "params.safetensors").read_bytes()
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()
