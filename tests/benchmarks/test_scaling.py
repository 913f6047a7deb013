"""benchmarks/scaling.py: slopes of known powers, points that are kept, and a run in miniature."""

import sys
from pathlib import Path

import pytest
from comparison import random_model

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import growth  # noqa: E402
import scaling  # noqa: E402
from growth import AXES, DRAWN, SAMPLER, STEP, Point  # noqa: E402
from measure import OURS  # noqa: E402
from meter import GIB, Meter  # noqa: E402

from minisd import store  # noqa: E402
from minisd.clip import CLIPText  # noqa: E402
from minisd.config import TINY_MODEL  # noqa: E402
from minisd.unet import UNet  # noqa: E402
from minisd.vae import VAE  # noqa: E402


def grown(axis: str, job: str, x: int, seconds: float, room: float = 1.0) -> Point:
    return Point(axis, job, x, (2 * seconds, seconds, 100 * seconds), GIB, GIB + int(room * GIB))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, cfg = tmp_path_factory.mktemp("weights"), TINY_MODEL
    store.save(folder / OURS, cfg, {"unet": random_model(UNet, cfg.unet), "vae": random_model(VAE, cfg.vae),
                                    "text": random_model(CLIPText, cfg.text[0])})
    return folder


def test_slopes_are_powers() -> None:
    assert growth.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert growth.slope([0, 1, 8], [5, 1, 8]) == pytest.approx(1)      # nothing has no logarithm
    points = [grown("size", STEP, x, x ** 2 / 1e4, x / 512) for x in (256, 512, 1024)]
    assert "| **slope** | guided UNet step by pixels a side | | **2.00** | | **1.00** |" in growth.table(points)


def test_what_samplers_take_is_told_beside_a_step() -> None:
    points = [grown("batch", STEP, 1, 2.0), grown(SAMPLER, "euler", 20, 0.2), grown(SAMPLER, "ddim", 20, 0.1)]
    head, slowest, quickest = growth.findings(points)
    assert "2 s" in head and "0.5%" in head
    assert slowest.split() == ["euler", "10000", "us", "0.5000%"] and quickest.split()[0] == "ddim"
    assert not list(growth.findings(points[1:]))


def test_what_loras_add_is_told_and_drawn_over_a_step_without() -> None:
    points = [grown("adapters", STEP, x, 2.0 + x / 10) for x in (0, 1, 4)]
    assert list(growth.findings(points)) == ["to a guided step of 2 s LoRAs add 1: 5.0%, 4: 20.0%"]
    panel = growth.panel(points, "adapters", "seconds", growth.MEASURES["seconds"])
    assert panel.curves == {STEP: [(1, 2.1), (4, 2.4)], f"{STEP} without": [(1, 2.0), (4, 2.0)]}


def test_points_are_kept_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "scaling.json"
    for seconds in (3.0, 1.0):
        growth.keep(path, grown("steps", "whole picture", 5, seconds))
        growth.keep(path, grown("size", STEP, 512, seconds))
    assert growth.kept(path) == [grown("size", STEP, 512, 1.0), grown("steps", "whole picture", 5, 1.0)]
    path.write_text('{"machine": "another", "points": []}')
    with pytest.raises(SystemExit, match="give another --out"):
        growth.kept(path)


def test_memory_is_seen() -> None:
    meter = Meter("cpu")
    held = meter.begin()
    block = bytearray(b"1") * (64 << 20)
    assert 48 << 20 < meter.peak() - held < 200 << 20
    del block
    assert meter.begin() < held + (32 << 20)


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_in_miniature(axis: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "MOST", 1)
    out = tmp_path / "points.json"
    told = ["--quick", "--axis", axis, "--weights", str(weights), "--out", str(out), "--dtype", "float32"]
    scaling.main(told)
    points = growth.kept(out)
    assert {(p.job, p.x) for p in points} == {(job, x) for job in AXES[axis].jobs for x in AXES[axis].few}
    assert all(p.time > 0 and p.peak > 0 and p.held > 0 for p in points)    # what other tests hold may go meanwhile
    before = out.read_bytes()
    scaling.main(told)                                # there is nothing left to measure
    assert out.read_bytes() == before
    if axis in DRAWN:
        assert growth.plot(points).width > 500
