"""Fidelity: closed forms of its figures, and whole comparisons of students that are known."""

import json
from dataclasses import replace

import pytest
import tiny_model
import torch

from minisd import store, surgery
from minisd.errors import USAGE, MinisdError
from minisd.evaluate.__main__ import main
from minisd.evaluate.fidelity import LEVEL, fidelity, resampled, won_back
from minisd.evaluate.protocol import protocol_hash


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    store.save(path / "tiny", tiny_model.MODEL, tiny_model.modules(), torch.float32)
    return path / "tiny"


@pytest.fixture(scope="module")
def students(teacher, tmp_path_factory):
    """The teacher without mid block: untrained, and half-way back to a student that the teacher's mid block moves."""
    folder, sd = tmp_path_factory.mktemp("students"), store.load(teacher, "cpu", "float32")
    cfg = replace(sd.cfg, unet=surgery.student(sd.unet.cfg, ["mid"]), vision=None)
    cut = surgery.transplant(sd.unet, cfg.unet)
    store.save(folder / "untrained", cfg, {"unet": cut, "vae": sd.vae, "text": sd.text[0]}, torch.float32)
    with torch.no_grad():
        for p in cut.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    store.save(folder / "worse", cfg, {"unet": cut, "vae": sd.vae, "text": sd.text[0]}, torch.float32)
    return folder


def figures(found):
    return {(one.measure, one.what): one for one in found.figures}


def test_an_untrained_student_has_won_nothing_and_the_teacher_everything(teacher, students, data, tmp_path):
    same = figures(fidelity(str(teacher), str(students / "untrained"), data, 8, 2, tmp_path))
    won = same["error against the teacher, all timesteps", "won back"]
    assert won.value == pytest.approx(0, abs=1e-5) and won.interval == pytest.approx((0, 0), abs=1e-4)
    assert same["SSIM with the teacher's pictures", "student minus untrained"].value == pytest.approx(0, abs=1e-6)
    whole = figures(fidelity(str(teacher), str(teacher), data, 8, 0, tmp_path))
    assert whole["error against the teacher, all timesteps", "student"].value == 0
    assert whole["error of the noise above the teacher's", "student"].value == 0
    assert not any("SSIM" in measure for measure, _ in whole)
    assert {measure.rpartition(" ")[2] for measure, _ in whole if "features" in measure} == {
        "down.0.downsample", "down.1", "mid", "up.0", "up.1"}


def test_a_student_that_is_worse_than_untrained(teacher, students, data, tmp_path):
    found = figures(fidelity(str(teacher), str(students / "worse"), data, 16, 0, tmp_path))
    won = found["error against the teacher, all timesteps", "won back"]
    assert won.value < 0 and won.interval[0] <= won.value <= won.interval[1]
    bands = [found[f"error against the teacher, {n}. quarter of t", "student"].value for n in (1, 2, 3, 4)]
    assert found["error against the teacher, all timesteps", "student"].value == pytest.approx(sum(bands) / 4)
    assert found["relative error of features, down.0.downsample", "untrained"].value == 0
    assert found["relative error of features, up.0", "student"].value > 0


def test_the_share_won_back_in_closed_form():
    before, after = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 1.5])
    found = won_back("x", before, after)
    assert found.value == pytest.approx(0.5) and found.interval == pytest.approx((0.5, 0.5))  # the same in each sample
    assert won_back("x", before, torch.zeros(3)).value == 1


def test_resampled_intervals_are_as_wide_as_the_normal_ones():
    values = torch.randn(400, generator=torch.Generator().manual_seed(2)).double()
    low, high = resampled(lambda rows: values[rows].mean(dim=-1), 400)
    half = 1.96 * values.std().item() / 20
    assert (low, high) == pytest.approx((values.mean().item() - half, values.mean().item() + half), abs=0.01)
    assert LEVEL == 0.95 and resampled(lambda rows: values[rows].mean(dim=-1), 400) == (low, high)


def test_the_protocol_is_one_for_all_students_and_another_for_other_samples(teacher, students, data, tmp_path):
    hashes = [fidelity(str(teacher), str(students / name), data, count, 0, tmp_path).protocol["protocol"]
              for name, count in (("untrained", 8), ("worse", 8), ("worse", 12))]
    assert hashes[0] == hashes[1] != hashes[2] and all(len(one) == 12 for one in hashes)
    assert protocol_hash({"a": 1, "b": [2]}) == protocol_hash({"b": [2], "a": 1}) != protocol_hash({"a": 1, "b": [3]})


def test_the_program(teacher, students, data, tmp_path, capsys):
    options = ["fidelity", str(teacher), str(students / "worse"), "--data", str(data), "--samples", "8",
               "--pictures", "0", "--cache", str(tmp_path), "--out", str(tmp_path / "new" / "found.json")]
    assert main(options) == 0
    told = capsys.readouterr().out
    written = json.loads((tmp_path / "new" / "found.json").read_text())
    assert f"protocol {written['protocol']['protocol']}" in told and "won back" in told
    assert main([*options[:-2], "--samples", "2"]) == USAGE
    assert main([options[0], options[2], options[1], *options[3:]]) == USAGE
    assert "not a part of the teacher" in capsys.readouterr().err


def test_one_picture_has_no_interval(teacher, data, tmp_path):
    with pytest.raises(MinisdError, match="--pictures 1"):
        fidelity(str(teacher), str(teacher), data, 8, 1, tmp_path)
