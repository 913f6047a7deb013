"""Questions are answered without weights, and previews change no picture."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from minisd.drawing import metadata
from minisd.generate.__main__ import main
from minisd.samplers.recipes import METHODS, SPACINGS, sampler

ROOT = Path(__file__).parents[2]


def test_the_samplers_are_listed_without_torch() -> None:
    program = ("import sys; from minisd.generate.__main__ import main; code = main(['--list-samplers']); "
               "sys.exit('torch' in sys.modules or code)")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows, last = done.stdout.split("\n\n")
    named = [line.split("  ")[0].strip() for line in rows.splitlines()[1:]]
    assert named == [method.names[0] for method in METHODS]
    assert all(word in last for word in SPACINGS) and all(sampler(f"{name} karras") for name in named)


def test_a_prompt_is_explained(draw, out, capsys) -> None:
    assert draw("a (red:1.5) apple", "--explain", "-n", "[blurry]", "--steps", "4") == 0
    said = capsys.readouterr().out
    assert said.startswith("a (red:1.5) apple\n") and "1.5" in said and "apple" in said
    assert "Negative prompt: [blurry]" in said and "0.909" in said and "of 4" in said
    assert not out.exists()


def test_a_sampler_is_described_as_the_model_would_walk_it(draw, out, capsys) -> None:
    assert draw("--sampler-info", "heun karras", "--steps", "3") == 0
    said = capsys.readouterr().out
    assert said.startswith("Heun, Karras: 3 steps, 5 calls") and "paper" in said
    assert draw("--sampler-info", "euler") == 0
    assert "20 steps, 20 calls" in capsys.readouterr().out and not out.exists()


@pytest.mark.parametrize(("args", "told"), [
    (["--explain"], "no prompt"), (["--explain", "(a:1000)"], "1000"), (["--sampler-info", "eular"], "nearest: euler"),
    (["--sampler-info", "euler", "--steps", "0"], "1 to 1000")])
def test_what_cannot_be_answered(args, told, draw, capsys) -> None:
    assert draw(*args) == 2 and told in capsys.readouterr().err


def test_previews_show_the_batch_and_change_no_picture(draw, out, capsys) -> None:
    assert draw("a", "--steps", "5", "--count", "2", "--sampler", "euler a") == 0
    assert draw("a", "--steps", "5", "--count", "2", "--sampler", "euler a", "--preview-every", "2") == 0
    for first, second in (("00001-0.png", "00004-0.png"), ("00002-1.png", "00005-1.png")):
        assert (out / first).read_bytes() == (out / second).read_bytes()
    with Image.open(out / "preview.png") as shown, Image.open(out / "00003-grid.png") as sheet:
        assert shown.size == sheet.size
    assert draw("a", "--steps", "1", "--preview-every", "0") == 2 and "1 to 1000" in capsys.readouterr().err


def test_a_preview_overwrites_nothing_but_a_preview(out, capsys, monkeypatch) -> None:
    monkeypatch.setattr("minisd.generate.pictures.draw", None)
    out.mkdir()
    Image.new("RGB", (8, 8)).save(out / "preview.png")
    before = (out / "preview.png").read_bytes()
    assert main(["a", "--preview-every", "1", "--out", str(out)]) == 2
    assert "another file" in capsys.readouterr().err and (out / "preview.png").read_bytes() == before


def test_a_preview_is_no_picture_of_a_list(draw, out, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    for _ in range(2):
        assert draw("--prompts", str(tmp_path / "prompts.txt"), "--steps", "2", "--preview-every", "1") == 0
    assert sorted(path.name for path in out.iterdir()) == ["00001-0.png", "00002-0.png", "preview.png"]
    assert metadata.read_drawn(out / "00002-0.png").drawing.prompt == "b"
