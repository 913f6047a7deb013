"""The table of approximations, on a tiny model: what it measures, its files, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from minisd import store
from minisd.drawing.control import Shortcuts
from minisd.errors import MinisdError
from minisd.evaluate.__main__ import main
from minisd.evaluate.approximations import NETWORKS, Drawn, Row, draw, drawings_of, lines, row_of
from minisd.evaluate.approximations_options import INTERVAL, SHEET, TABLE, WAYS, ApproximationsOptions, Way
from minisd.evaluate.clip_score import clip_score, cosine, load_judge
from minisd.evaluate.figure import Figure
from minisd.evaluate.similarity import psnr, ssim
from minisd.images import to_tensor

PROMPTS = ("a red apple", "a cat")
ARGS = ("--prompts", *PROMPTS, "--count", "2", "--steps", "4", "--cfg", "3")


@pytest.fixture(scope="module")
def table(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a table by the program itself."""
    out = tmp_path_factory.mktemp("approximations") / "new" / "folder"
    assert main(["approximations", str(model), "--out", str(out), *ARGS]) == 0
    return out


@pytest.fixture(scope="module")
def read(table: Path) -> dict[str, dict[str, dict[str, object]]]:
    rows = json.loads((table / TABLE).read_text(encoding="utf-8"))["rows"]
    return {row["way"]: row["figures"] for row in rows}


def test_a_row_for_every_way(read) -> None:
    assert list(read) == ["exact", *(way.name for way in WAYS)]
    assert set(read["exact"]) == {"UNet seconds", "CLIP score"}
    for way in WAYS:
        assert {"UNet seconds", "times as fast", "SSIM", "CLIP cosine", "CLIP score, change"} <= set(read[way.name])
        assert read[way.name]["UNet seconds"]["value"] > 0 and read[way.name]["SSIM"]["pictures"] == 4


def test_the_measures_are_those_of_pictures_drawn_alone(read, model) -> None:
    sd, judge = store.load(model, "cpu", "float32"), load_judge(model)
    exact = [sd.drawing(prompt, "", 4, 3.0, seed=n) for prompt in PROMPTS for n in range(2)]

    def drawn(shortcuts: Shortcuts) -> torch.Tensor:
        pictures = [sd.draw([replace(one, shortcuts=shortcuts)])[0] for one in exact]
        return torch.stack([to_tensor(picture) for picture in pictures])

    ours, theirs, words = drawn(Shortcuts(3)), drawn(Shortcuts()), judge.captions([one.prompt for one in exact])
    found = {name: figure["value"] for name, figure in read["reuse 3"].items()}
    assert found["SSIM"] == pytest.approx(ssim(ours, theirs).mean().item(), abs=1e-3)
    assert found["PSNR, dB"] == pytest.approx(psnr(ours, theirs).mean().item(), abs=0.1)
    assert found["CLIP cosine"] == pytest.approx(cosine(judge.pictures(ours), judge.pictures(theirs)).mean().item(),
                                                 abs=1e-3)
    scores = [clip_score(cosine(judge.pictures(pictures), words)).mean().item() for pictures in (ours, theirs)]
    assert found["CLIP score"] == pytest.approx(scores[0], abs=2e-3)
    assert found["CLIP score, change"] == pytest.approx(scores[0] - scores[1], abs=2e-3)


def test_the_file_says_how_it_was_made(table, model) -> None:
    protocol = json.loads((table / TABLE).read_text(encoding="utf-8"))["protocol"]
    assert (protocol["prompts"], protocol["count"], protocol["steps"]) == (list(PROMPTS), 2, 4)
    assert protocol["model_sha256"] == store.fingerprint(model) and len(protocol["protocol"]) == 12
    ways = {way["name"]: way for way in protocol["ways"]}
    assert ways["reuse 5"]["shortcuts"] == {"reuse": 5, "merge": 0.0}
    assert ways["guidance interval"]["guide"]["interval"] == list(INTERVAL)
    assert ways["bfloat16"]["computes_in"] == "bfloat16" and ways["int8"]["dtype"] == "int8"


def test_the_sheet_shows_prompts_by_ways(table) -> None:
    with Image.open(table / SHEET) as sheet:
        assert sheet.width > (1 + len(WAYS)) * 64 and sheet.height > len(PROMPTS) * 64


def test_a_table_is_never_overwritten(table, model, capsys) -> None:
    before = (table / TABLE).read_bytes()
    assert main(["approximations", str(model), "--out", str(table), *ARGS]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (table / TABLE).read_bytes() == before and len(list(table.iterdir())) == 2


def test_the_clock_sees_whole_calls_and_others(model, monkeypatch) -> None:
    """All in reuse of 4 calls but the first is the part that always runs."""
    options = ApproximationsOptions(str(model), Path("none"), ("a",), 2, steps=4)
    sd, seen = store.load(model, "cpu", "float32"), []
    plain = sd.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    monkeypatch.setattr("minisd.evaluate.approximations.WAYS", (Way("reuse 4", Shortcuts(4)),))
    found = draw({"float32": sd}, drawings_of(sd, options), 8)
    plain.remove()
    assert len(seen) == 2 + 4 + 1                 # in the warming up, exactly, and of four
    assert found["reuse 4"].seconds[0] > 0 and set(NETWORKS) == {"UNet", "Outermost"}


def test_equal_pictures_have_no_psnr(model) -> None:
    judge, picture = load_judge(model), Image.effect_noise((64, 64), 50).convert("RGB")
    same = Drawn([picture] * 3, [1.0])
    figures = row_of("as good", same, Drawn([picture] * 3, [2.0]), judge, ["a"] * 3).figures
    assert "PSNR, dB" not in figures and figures["SSIM"].value == pytest.approx(1)
    assert figures["times as fast"].value == 2 and figures["CLIP score, change"].value == 0


def test_the_table_is_printed_in_columns() -> None:
    row = Row("reuse 2", {"UNet seconds": Figure("", "", 0.25, 2), "SSIM": Figure("", "", 0.9, 2, (0.8, 1.0)),
                          "PSNR, dB": Figure("", "", 31.26, 2, (30.26, 32.26))})
    head, line = lines([row]).splitlines()
    assert line.startswith("reuse 2") and line.index("0.900 ± 0.1") == head.index("SSIM")
    assert line.index("31.3 ± 1") == head.index("PSNR")


REFUSED = [({"count": 1}, "--count 1"), ({"batch": 0}, "--batch 0"), ({"steps": 0}, "--steps 0"),
           ({"cfg": -1.0}, "--cfg -1"), ({"sampler": "eular"}, "eular"), ({"prompts": ()}, "--prompts names nothing"),
           ({"seed": 2 ** 64 - 1}, "--seed")]


@pytest.mark.parametrize(("change", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_refused_before_a_model_is_loaded(change, told, tmp_path) -> None:
    with pytest.raises(MinisdError, match=told) as caught:
        replace(ApproximationsOptions("emoji", tmp_path / "out"), **change).check()
    assert caught.value.code == 2 and not (tmp_path / "out").exists()
