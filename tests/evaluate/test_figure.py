"""Figures: means and shares with their intervals, and the table."""

import pytest
import torch

from minisd.evaluate.figure import Figure, mean, share, table


def test_a_mean_and_its_interval():
    figure = mean("x", "y", torch.tensor([1.0, 2.0, 3.0, 4.0]))
    half = 1.96 * (5 / 3) ** 0.5 / 2
    assert (figure.value, figure.pictures) == (2.5, 4)
    assert figure.interval == pytest.approx((2.5 - half, 2.5 + half))


def test_a_share_and_wilsons_interval():
    figure = share("x", "y", torch.tensor([1.0] * 8 + [0.0] * 2))
    assert figure.value == 0.8
    assert figure.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)   # Wilson's for 8 of 10


@pytest.mark.parametrize("hits", [0.0, 1.0])
def test_certain_shares_stay_between_nothing_and_all(hits: float):
    low, high = share("x", "y", torch.full((20,), hits)).interval or (-1, -1)
    assert 0 <= low <= hits <= high <= 1
    assert high - low > 0.1


def test_the_table_has_a_line_per_figure_in_columns():
    figures = [Figure("PSNR", "held out", 28.5, 10, (28.0, 29.0)), Figure("distance", "drawn", 0.25, 200)]
    lines = table(figures).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["PSNR", "held", "out", "28.5", "28", "to", "29", "10"]
    assert lines[1].index("10") == lines[2].index("200") == lines[0].index("pictures")
