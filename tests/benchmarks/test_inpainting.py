"""benchmarks/inpainting.py: by the embedded model, pixels outside the mask are byte-identical."""

import sys
from pathlib import Path

import numpy as np
import pytest

import minisd
from minisd import images

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))

from inpainting import ROWS, changed_outside, main, mask_of


@pytest.fixture(scope="module")
def sd() -> minisd.StableDiffusion:
    return minisd.load("emoji", device="cpu", dtype="float32")


@pytest.mark.parametrize("sampler", ["dpm++2m karras", "euler a"])
@pytest.mark.parametrize("row", ROWS[:2], ids=lambda row: row.before)
def test_outside_the_mask_the_embedded_model_changes_nothing(sd, row, sampler: str) -> None:
    before, = sd.txt2img(row.before, seed=row.seed, steps=3)
    mask = mask_of(row, before.size)
    after, = sd.inpaint(row.after, before, mask, steps=3, sampler=sampler)
    kept, inside = np.asarray(mask) == 0, np.asarray(mask) == 255
    assert np.asarray(before)[kept].tobytes() == np.asarray(after)[kept].tobytes()
    assert np.abs(np.asarray(before).astype(int) - np.asarray(after))[inside].mean() > 2
    assert changed_outside(row, before, after) == (int(kept.sum()), 0)
    spoilt = after.copy()
    spoilt.putpixel((127, 127), (1, 2, 3))        # and the count is no formality
    assert changed_outside(row, before, spoilt)[1] == 1


def test_the_program_draws_a_row_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert main(["--out", str(out), "--steps", "1"]) == 0
    assert capsys.readouterr().out.count("| 0 |") == len(ROWS)
    assert images.open_picture(out).height > 128 * len(ROWS)
