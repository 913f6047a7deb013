"""Curves: every point is where its numbers say, in the colour of its name."""

import itertools

import numpy as np
import pytest

from minisd.evaluate.curves import HEIGHT, LEFT, TOP, WIDTH, Panel, colours, curves, powers, ticks


def shown(image, colour) -> np.ndarray:
    """Where a colour is within the first panel: [n, (y, x)]."""
    inside = np.asarray(image)[TOP - 4:TOP + HEIGHT + 5, LEFT - 4:LEFT + WIDTH + 5]
    return np.argwhere((inside == colour).all(-1)) - 4


def test_curves_run_from_corner_to_corner() -> None:
    rising, falling = [(1.0, 0.0), (10.0, 0.5), (100.0, 1.0)], [(1.0, 1.0), (100.0, 0.0)]
    image = curves([Panel("a measure", "calls", {"up": rising, "down": falling})])
    up = shown(image, colours(2)[0])
    left, right = up[up[:, 1].argmin()], up[up[:, 1].argmax()]
    assert abs(left[1]) <= 4 and abs(left[0] - HEIGHT) <= 4          # x = 1 is the left edge, y = 0 the lower
    assert abs(right[1] - WIDTH) <= 4 and abs(right[0]) <= 4
    middle = up[np.abs(up[:, 1] - WIDTH / 2) <= 1]                   # x is drawn in logarithms
    assert np.abs(middle[:, 0] - HEIGHT / 2).max() <= 5
    down = shown(image, colours(2)[1])
    assert abs(down[down[:, 1].argmin()][0]) <= 4


def test_panels_without_a_point_are_left_out() -> None:
    full = Panel("a", "calls", {"one": [(1.0, 1.0), (2.0, 2.0)]})
    empty = Panel("b", "calls", {"one": []})
    assert curves([full, empty]).size == curves([full]).size
    assert curves([full, full]).width > curves([full]).width


def test_a_single_point_and_level_curves_are_drawn() -> None:
    image = curves([Panel("a", "calls", {"point": [(5.0, 0.5)], "level": [(5.0, 0.5), (50.0, 0.5)]})])
    assert len(shown(image, colours(2)[1])) > WIDTH


def test_colours_differ() -> None:
    for count in (2, 12, 29):
        assert len(set(colours(count))) == count


def test_the_grid_is_of_plain_numbers() -> None:
    assert ticks(0.13, 0.97) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(31.0, 38.9) == [32, 34, 36, 38]
    assert powers(4, 159) == [5, 10, 20, 50, 100] and powers(0.02, 1.0) == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5, 1])
    for low, high in itertools.product((-3.0, 0.1, 0.77), (1.0, 4.321, 99.0, 1e5)):
        assert 3 <= len(ticks(low, high)) <= 8 and low <= min(ticks(low, high)) <= max(ticks(low, high)) <= high


def test_what_comes_near_a_limit_is_spread_out() -> None:
    panel = Panel("a", "calls", {"one": [(1.0, 0.9), (10.0, 0.99), (100.0, 0.999)]}, limit=1.0)
    assert panel.lines() == pytest.approx([0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9])
    assert panel.height(0.99) - panel.height(0.9) == pytest.approx(panel.height(0.999) - panel.height(0.99))
    assert panel.height(1.0) == panel.height(0.99999)
    drawn = shown(curves([panel]), colours(1)[0])
    middle = drawn[np.abs(drawn[:, 1] - WIDTH / 2) <= 1]
    assert np.abs(middle[:, 0] - HEIGHT / 2).max() <= 5


def test_a_power_is_a_straight_line() -> None:
    panel = Panel("a", "pixels", {"square": [(x, x * x) for x in (1.0, 2.0, 10.0, 100.0)]}, powers=True)
    assert panel.lines() == pytest.approx([y * 10.0 ** n for n in range(4) for y in (1, 2, 5)] + [1e4])
    drawn = shown(curves([panel]), colours(1)[0])
    middle = drawn[np.abs(drawn[:, 1] - WIDTH / 2) <= 1]
    assert np.abs(middle[:, 0] - HEIGHT / 2).max() <= 5
