"""report.html: every curve and sheet is on it, and it is one file that opens from disk."""

import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from line import CFG, fit

from minisd.train.report import chart, groups, write_report


class Seen(HTMLParser):
    """Tags of a page with their attributes, and its words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += data


def test_a_run_leaves_its_report(tmp_path):
    fit(tmp_path / "a <run>", CFG)
    page = Seen((tmp_path / "a <run>" / "report.html").read_text())
    assert "a <run>" in page.words and "step 6" in page.words
    assert page.words.count("fit") and page.words.count("weight") and page.words.count("gradient")
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]


def test_sheets_are_shown_the_newest_first(tmp_path):
    (tmp_path / "samples" / "references").mkdir(parents=True)
    for name in ("0000000.png", "0000020.png", "references/teacher.png"):
        (tmp_path / "samples" / name).write_bytes(b"")
    rows = [{"step": 0, "held_out/noise": 0.5}, {"step": 20, "held_out/noise": 0.25, "lr": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Seen(write_report(tmp_path).read_text())
    assert [found["src"] for tag, found in page.tags if tag == "img"] == ["samples/0000020.png", "samples/0000000.png"]
    assert ["open" in found for tag, found in page.tags if tag == "details"] == [True, False]
    assert "untrained → now: held_out/noise 0.5 → 0.25" in page.words
    assert all((tmp_path / found["src"]).is_file() for tag, found in page.tags if tag == "img")


def test_nothing_yet(tmp_path):
    assert "nothing is measured yet" in write_report(tmp_path).read_text()


def test_names_before_a_slash_share_a_chart_and_numbers_that_are_none_are_left_out():
    rows = [{"step": 1, "samples": 4, "share/a": 0.5, "share/b": 0.5, "loss": float("nan")}, {"step": 2, "loss": 2.0}]
    assert groups(rows) == {"share": {"a": [(1, 0.5)], "b": [(1, 0.5)]}, "loss": {"loss": [(2, 2.0)]}}


def places(points):
    figure = ElementTree.fromstring(chart("x", {"x": points}))
    return [[tuple(map(float, place.split(","))) for place in line.get("points").split()]
            for line in figure.iter("polyline")]


def test_a_curve_goes_through_its_points_and_the_bar_to_beat_is_dashed():
    """62 pixels lie left of the curves, 22 under them."""
    curve, bar = places([(0, 2.0), (5, 1.0), (10, 3.0)])
    assert curve == [(62, 79), (241, 158), (420, 0)] and bar == [(62, 79), (420, 79)]


def test_a_wide_axis_is_logarithmic():
    assert places([(1, 1.0), (2, 10.0), (4, 100.0)])[0] == [(151.5, 158), (241, 79), (420, 0)]


@pytest.mark.parametrize("points", [[(0, 1.0)], [(0, 0.0), (1, 0.0)], [(3, -1.0), (4, 1e300)]])
def test_odd_curves_are_drawn_too(points):
    assert "nan" not in chart("x", {"x": points})
