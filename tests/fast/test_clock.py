"""Where the time goes: every second is counted once."""

from pathlib import Path
from time import perf_counter, sleep

import pytest
import torch
from torch import Tensor, nn

from minisd.fast import clock
from minisd.fast.clock import BEFORE, BESIDE, Clock, peak_memory


class Slow(nn.Module):
    """Sleeps before and after what lies in it."""

    def __init__(self, seconds: float, *inner: nn.Module):
        super().__init__()
        self.seconds, self.inner = seconds, nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        sleep(self.seconds)
        for module in self.inner:
            x = module(x)
        sleep(self.seconds)
        return x


class Net(Slow):
    """A network."""


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no")


def test_own_time_is_told_from_that_of_inner_modules() -> None:
    net = Net(0.02, Slow(0.05), Slow(0.05))
    start = perf_counter()
    with Clock(start) as spent:
        sleep(0.03)
        net(torch.zeros(1))
        sleep(0.04)
        net(torch.zeros(1))
    whole = perf_counter() - start
    rows = {(row.network, row.kind): row for row in spent.rows()}
    assert rows["Net", ""].calls == 2 and rows["Net", "Slow"].calls == 4
    assert rows["Net", "Slow"].seconds >= 0.4 and rows["Net", "Net"].seconds >= 0.08
    assert rows[BEFORE, ""].seconds >= 0.03 and rows[BESIDE, ""].seconds >= 0.04
    totals = sum(row.seconds for row in rows.values() if not row.kind)
    assert whole - 0.01 < totals <= whole
    assert sum(row.seconds for row in rows.values() if row.kind) == pytest.approx(rows["Net", ""].seconds)
    assert "Net" in spent.table() and "share" in spent.table()


def test_nothing_is_looked_at_afterwards_nor_after_an_error() -> None:
    net = Net(0.0, Failing())
    with pytest.raises(ValueError, match="no"), Clock() as spent:
        net(torch.zeros(1))
    assert spent.within == []
    calls = dict(spent.calls)
    Net(0.0)(torch.zeros(1))
    assert dict(spent.calls) == calls


def test_peak_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "STATUS", tmp_path / "status")
    assert peak_memory() is None
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  2048 kB\n")
    assert peak_memory() == 2 << 20
