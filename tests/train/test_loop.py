"""The loop by itself, with a task that fits a line: updates, rows, signals, and numbers that are not finite."""

import ctypes
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from line import CFG, Line, fit, rows, same, saved, start

from minisd.errors import INTERRUPTED, NUMERICAL, RESOURCE, MinisdError
from minisd.train import loop, state
from minisd.train.interrupts import SIGNALS


def samples(run):
    """The numbers of all samples that a run has seen, in their order."""
    return [number for _, numbers in run.task.seen for number in numbers]


def losses(folder):
    return [row["fit"] for row in rows(folder) if "fit" in row]


# --- updates ---


def test_it_learns_and_leaves_the_average(tmp_path):
    run = fit(tmp_path, replace(CFG, steps=300, warmup=0, save_every=300, preview_every=0, log_every=100))
    layer = run.task.layer
    assert layer.weight.item() == pytest.approx(3, abs=0.2) and layer.bias.item() == pytest.approx(-1, abs=0.2)
    assert torch.equal(layer.weight.detach(), run.state.ema["weight"])


def test_accumulating_is_a_larger_batch(tmp_path):
    """The same samples, updates, rates and losses: (4 passes of 2) = (1 pass of 8)."""
    one = fit(tmp_path / "1", replace(CFG, batch=8, schedule="cosine"))
    four = fit(tmp_path / "4", replace(CFG, batch=2, accumulate=4, schedule="cosine"))
    for a, b in zip(rows(tmp_path / "1"), rows(tmp_path / "4"), strict=True):
        assert a.keys() == b.keys() and a == pytest.approx(b, rel=2e-6)       # rows have six digits
    for name, p in one.state.params.items():
        torch.testing.assert_close(p, four.state.params[name], rtol=1e-6, atol=1e-7)
    assert samples(one) == samples(four) == list(range(48))


def test_a_run_goes_on_with_other_passes(tmp_path):
    """2 steps of 1 pass of 8 and 2 of 4 passes of 2 are 4 steps."""
    one, four = replace(CFG, batch=8, steps=4), replace(CFG, batch=2, accumulate=4, steps=4)
    fit(tmp_path / "one", one)
    fit(tmp_path / "changed", replace(one, steps=2))
    fit(tmp_path / "changed", four)
    for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "changed"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_every_pass_has_its_own_samples_after_a_restart_too(tmp_path):
    cfg = replace(CFG, steps=2, accumulate=3)
    fit(tmp_path, cfg)
    again = fit(tmp_path, replace(cfg, steps=4))
    assert samples(again) == list(range(24, 48))


def test_large_gradients_are_clipped(tmp_path):
    run = fit(tmp_path, replace(CFG, steps=1, clip=0.5), Line({0: lambda task, fit: 1e6 * fit}))
    assert rows(tmp_path)[0]["gradient"] > 1e5
    moments = [run.state.optimizer.state[p]["exp_avg"].norm() for p in run.state.params.values()]
    assert torch.stack(moments).norm() < 0.051     # a tenth of the gradient


# --- what is written when ---


def test_rows_hold_the_means_since_the_last_row(tmp_path):
    fit(tmp_path / "all")
    fit(tmp_path / "some", replace(CFG, log_every=4))
    each = [row for row in rows(tmp_path / "all") if "fit" in row]
    some = [row for row in rows(tmp_path / "some") if "fit" in row]
    assert [row["step"] for row in each] == [1, 2, 3, 4, 5, 6] and [row["step"] for row in some] == [4, 6]
    assert some[0]["fit"] == pytest.approx(sum(row["fit"] for row in each[:4]) / 4, rel=1e-5)
    assert some[1]["small"] == pytest.approx(sum(row["small"] for row in each[4:]) / 2, rel=1e-5)
    assert each[0] == {"step": 1, "samples": 4, "lr": 0.025, "fit": each[0]["fit"], "small": 0, "gradient":
                       each[0]["gradient"]}


def test_previews_show_the_average_and_leave_the_weights(tmp_path):
    run = start(tmp_path)
    shown = {}

    def look(task):
        shown[run.state.step] = (task.layer.weight.item(), run.state.ema["weight"].item())

    run.task.events["preview"] = look
    loop.fit(run)
    assert set(shown) == {3, 6} and all(a == b for a, b in shown.values())
    assert [row["weight"] for row in rows(tmp_path) if "weight" in row] == pytest.approx([a for a, _ in shown.values()],
                                                                                          rel=1e-5)
    fit(tmp_path / "without", replace(CFG, preview_every=0))
    assert saved(tmp_path) == saved(tmp_path / "without")


def test_a_preview_that_fails_does_not_end_the_run(tmp_path, caplog):
    def fail(task):
        raise RuntimeError("no font")

    fit(tmp_path, task=Line({"preview": fail}))
    fit(tmp_path / "sound")
    assert saved(tmp_path) == saved(tmp_path / "sound")
    assert "no preview at step 3: no font" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="looks for OpenMP where Linux tells it")
def test_what_is_read_ahead_is_computed_on_as_many_threads_from_the_first_operation_on():
    """So that a resumed run, whose reader begins elsewhere, encodes every picture to the same bits."""
    openmp = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line)
    threads = ctypes.CDLL(openmp).omp_get_max_threads
    with ThreadPoolExecutor(1) as plain, loop.reading_thread() as reader:
        assert plain.submit(threads).result() == int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
        assert reader.submit(threads).result() == threads() == 1  # the tests' own number


def test_an_error_while_reading_ends_the_run_with_it(tmp_path):
    def batches(numbers):
        raise MinisdError("every picture is broken")

    run = start(tmp_path)
    run.batches = batches
    with pytest.raises(MinisdError, match="every picture is broken"):
        loop.fit(run)


# --- killed and stopped ---


@pytest.mark.parametrize("step", range(CFG.steps))
@pytest.mark.parametrize("log_every", [1, 4])
def test_killed_in_any_step_and_resumed_it_is_the_same_run(tmp_path, child, step, log_every):
    cfg = replace(CFG, log_every=log_every)
    fit(tmp_path / "whole", cfg)
    killer = Line({step: lambda task, fit: os.kill(os.getpid(), signal.SIGKILL)})
    assert child(lambda: fit(tmp_path / "cut", cfg, killer)) == -signal.SIGKILL
    fit(tmp_path / "cut", cfg)
    assert same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("function", ["record", "update", "report", "bar"])
@pytest.mark.parametrize("count", [0, 2, 5])
def test_killed_between_the_steps_and_resumed_it_is_the_same_run(tmp_path, child, monkeypatch, function, count):
    fit(tmp_path / "whole")
    inner, calls = getattr(loop, function), iter(range(100))

    def killing(*args, **options):
        done = inner(*args, **options)
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(loop, function, killing)
        assert child(lambda: fit(tmp_path / "cut")) == (0 if function == "bar" and count else -signal.SIGKILL)
    fit(tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_killed_again_and_again(tmp_path, child):
    fit(tmp_path / "whole")
    for step in (0, 1, 3, 2, 4, 5):
        child(lambda step=step: fit(tmp_path / "cut",
                                    task=Line({step: lambda *_: os.kill(os.getpid(), signal.SIGKILL)})))
    fit(tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_step_in_hand_saves_and_says_so(tmp_path, child, number):
    def stop(task, fit):
        os.kill(os.getpid(), number)
        return fit

    fit(tmp_path / "whole")
    assert child(lambda: fit(tmp_path / "cut", task=Line({4: stop}))) == INTERRUPTED
    assert state.checkpoints(tmp_path / "cut")[0].name == "checkpoint-5"
    fit(tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_while_pictures_are_drawn_waits_for_the_next_step(tmp_path, child):
    """It is never said of a step that it is saved when it is not."""
    def stop(task):
        os.kill(os.getpid(), signal.SIGTERM)

    cfg = replace(CFG, save_every=6)
    assert child(lambda: fit(tmp_path, cfg, Line({"preview": stop}))) == INTERRUPTED
    assert [path.name for path in state.checkpoints(tmp_path)] == ["checkpoint-4"]


# --- numbers that are not finite ---


def poison(value=float("nan")):
    return lambda task, fit: fit * value


def poisoned_gradient(task, fit):
    """A finite loss whose gradient is not: the root at 0."""
    return fit + (task.layer.weight.sum() * 0).sqrt()


@pytest.mark.parametrize("event", [poison(), poison(float("inf")), poisoned_gradient])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, event, caplog):
    run = start(tmp_path, replace(CFG, log_every=3), Line({1: event, 4: event}))
    loop.fit(run)
    assert [row["skipped"] for row in rows(tmp_path) if "fit" in row] == [1, 1]
    assert run.state.optimizer.state[run.task.layer.weight]["step"] == 4 and run.bad_steps == 0
    assert all(p.isfinite().all() for p in run.state.params.values())
    assert "step 2 is skipped" in caplog.text


def test_the_step_after_a_skipped_one_is_as_if_there_had_been_no_gradient(tmp_path):
    run = start(tmp_path, task=Line({2: poison()}))
    weights = {}
    for step in (1, 3):
        run.task.events[step] = lambda task, fit, step=step: weights.update({step: task.layer.weight.item()}) or fit
    run.task.events[2] = lambda task, fit: weights.update({2: task.layer.weight.item()}) or fit * float("nan")
    loop.fit(run)
    assert weights[1] != weights[2] == weights[3]


@pytest.mark.parametrize("log_every", [1, 20])
def test_too_many_in_a_row_end_the_run(tmp_path, log_every):
    cfg = replace(CFG, steps=20, max_bad_steps=3, log_every=log_every)
    with pytest.raises(MinisdError, match="3 skipped steps in a row") as error:
        fit(tmp_path, cfg, Line({1: poison(), **{step: poison() for step in range(4, 20)}}))
    assert error.value.code == NUMERICAL and error.value.where == "step 7"
    for path in state.checkpoints(tmp_path):
        assert state.verify(path) is None


def test_the_count_goes_on_over_a_restart(tmp_path, child):
    events = {step: poison() for step in range(1, 6)}
    cut = events | {3: lambda task, fit: os.kill(os.getpid(), signal.SIGKILL)}
    cfg = replace(CFG, max_bad_steps=3)
    assert child(lambda: fit(tmp_path, cfg, Line(cut))) == -signal.SIGKILL
    with pytest.raises(MinisdError, match="3 skipped steps") as error:
        fit(tmp_path, cfg, Line(events))
    assert error.value.where == "step 4"


@pytest.mark.parametrize("where", ["params", "ema", "moments"])
def test_a_poisoned_state_is_never_committed(tmp_path, where):
    run = start(tmp_path)

    def spoil(task, fit):
        tensors = {"params": run.state.params["weight"].data, "ema": run.state.ema["weight"],
                   "moments": run.state.optimizer.state[run.state.params["weight"]].get("exp_avg_sq")}
        tensors[where].fill_(float("nan"))
        return fit

    run.task.events[3] = spoil
    with pytest.raises(MinisdError) as error:
        loop.fit(run)
    assert error.value.code == NUMERICAL
    assert [path.name for path in state.checkpoints(tmp_path)] == ["checkpoint-2"]
    assert state.verify(tmp_path / "checkpoint-2") is None


def test_a_full_disk_under_the_log_is_a_resource_error(tmp_path):
    run = start(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(MinisdError, match="cannot write the metrics") as error:
        loop.fit(run)
    assert error.value.code == RESOURCE
