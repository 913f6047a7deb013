"""The pictures of benchmarks/personal.py: the same every time, split as said, of the things that they may show."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import personal_data


@pytest.fixture
def data(tmp_path):
    """Thirty things in two styles, two of which are left out."""
    folder, rows = tmp_path / "data", []
    folder.mkdir()
    for n in range(60):
        Image.new("RGB", (64, 64), (4 * n, 80, 255 - 4 * n)).save(folder / f"{n}.png")
        rows.append({"file": f"{n}.png", "concept": f"thing {n // 2}", "style": ("3d", "flat")[n % 2], "core": n < 40,
                     "split": "train", "captions": [f"thing {n // 2}"]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_creature_is_the_same_every_time_and_in_every_pose_another(tmp_path):
    first, again = (personal_data.subject(tmp_path / name) for name in ("a", "b"))
    assert all((first / f"{n:03d}.png").read_bytes() == (again / f"{n:03d}.png").read_bytes() for n in range(8))
    assert len({(first / f"{n:03d}.png").read_bytes() for n in range(8)}) == 8
    assert [row["split"] for row in personal_data.rows_of(first)] == ["train"] * 5 + ["holdout"] * 3


@pytest.mark.parametrize("make", [lambda *a: personal_data.style(*a), lambda data, folder, count, without:
                                  personal_data.rough(data, folder, {"rough": 25.0}, count, 0, without)])
def test_changed_pictures_are_of_known_things_and_an_eighth_is_held_out(data, tmp_path, make):
    folder = make(data, tmp_path / "made", 16, ("thing 3", "thing 7"))
    rows = personal_data.rows_of(folder)
    assert [row["split"] for row in rows].count("holdout") == 2 and len(rows) == 18
    assert {row["text"] for row in rows} <= {f"thing {n}" for n in range(20)} - {"thing 3", "thing 7"}


def test_ink_has_one_hue_and_grain_leaves_the_mean():
    picture = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    ink = np.asarray(personal_data.inked(picture), dtype=int)
    assert (abs(ink[0, 0] - personal_data.INK) <= 2).all() and (ink[..., 2] >= ink[..., 0]).all()
    grey = Image.new("RGB", (128, 128), (128, 128, 128))
    grained = np.asarray(personal_data.grained(grey, 25.0, 1), dtype=float)
    assert abs(grained.mean() - 128) < 5 and 10 < grained.std() < 30
    assert (grained == np.asarray(personal_data.grained(grey, 25.0, 1))).all()
