"""Pictures with shortcuts: each follows from its drawing alone, whatever was drawn before and beside it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model
from PIL import Image, ImageDraw

from minisd import images, store
from minisd.drawing import metadata
from minisd.drawing.control import EXACT, Guide, Hires, Mask, Shortcuts, Start
from minisd.drawing.plan import Drawing
from minisd.errors import MinisdError
from minisd.pipeline import StableDiffusion

PICTURE = Image.effect_mandelbrot((72, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
MASK = Image.new("L", PICTURE.size)
ImageDraw.Draw(MASK).ellipse((20, 17, 50, 40), fill=255)
ALBUM = images.album(PICTURE, MASK)
SHORTCUTS = {"reuse": Shortcuts(reuse=2), "merge": Shortcuts(merge=0.5), "both": Shortcuts(3, 0.75)}
START = Start(images.fingerprint(PICTURE), 0.8)
WAYS = {                                          # input channels, and what is changed in a drawing
    "plain": (4, {}), "no guidance": (4, {"guidance": 1.0}), "heun": (4, {"sampler": "heun"}),
    "pndm": (4, {"sampler": "pndm"}), "euler a": (4, {"sampler": "euler a"}),
    "interval": (4, {"guide": Guide(interval=(0.5, 4.0))}),
    "changing words": (4, {"prompt": "[apple:car:0.5]"}), "hires": (4, {"hires": Hires(2, 0.7)}),
    "img2img": (4, {"start": START}), "inpaint": (4, {"start": START, "mask": Mask(images.fingerprint(MASK))}),
    "inpaint, 9 channels": (9, {"start": START, "mask": Mask(images.fingerprint(MASK))}),
    "edit": (8, {"start": replace(START, strength=1.0), "image_guidance": 1.5}),
}
Make = Callable[[int], StableDiffusion]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The tiny model with this many input channels."""
    made: dict[int, StableDiffusion] = {}

    def build(channels: int) -> StableDiffusion:
        if channels not in made:
            cfg = replace(tiny_model.MODEL, unet=replace(tiny_model.MODEL.unet, in_channels=channels))
            folder = tiny_model.folder(tmp_path_factory.mktemp("shortcuts"), cfg)
            made[channels] = store.load(folder, "cpu", "float32")
        return made[channels]
    return build


def drawn(sd: StableDiffusion, *drawings: Drawing) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in sd.draw(drawings, pictures=ALBUM)]


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


@pytest.mark.parametrize(("way", "how"), [*(("plain", how) for how in SHORTCUTS), *((way, "both") for way in WAYS)])
def test_a_picture_follows_from_its_drawing_alone(make: Make, way: str, how: str) -> None:
    channels, change = WAYS[way]
    sd = make(channels)
    exact = replace(sd.drawing("a red apple", steps=4, size=PICTURE.size, seed=3), **change)
    short = replace(exact, shortcuts=SHORTCUTS[how])
    before, first = drawn(sd, exact)[0], drawn(sd, short)[0]
    assert apart(first, before) > 0
    assert apart(drawn(sd, exact)[0], before) == 0, "something has stayed"
    others = [replace(short, seed=8), replace(short, seed=9)]
    together = drawn(sd, short, *others)
    assert apart(drawn(sd, *others, short)[2], together[0]) == 0
    assert apart(together[0], first) <= 1
    assert apart(drawn(sd, short)[0], first) == 0, "something of another picture has stayed"


@pytest.mark.parametrize("shortcuts", [EXACT, Shortcuts(1, 0.0), Shortcuts(merge=0.01)], ids=str)
def test_the_least_of_them_is_the_exact_picture(make: Make, shortcuts: Shortcuts) -> None:
    """Of the 20 tokens of this size a hundredth is none."""
    sd = make(4)
    drawing = sd.drawing("a red apple", steps=3, size=PICTURE.size)
    assert apart(drawn(sd, replace(drawing, shortcuts=shortcuts))[0], drawn(sd, drawing)[0]) == 0


def test_the_more_is_left_out_the_farther(make: Make) -> None:
    sd = make(4)
    drawing = sd.drawing("a red apple", steps=12, size=(96, 96))
    exact = drawn(sd, drawing)[0]
    for kind in ([Shortcuts(n) for n in (2, 12)], [Shortcuts(merge=share) for share in (0.1, 0.75)]):
        near, far = (np.abs(drawn(sd, replace(drawing, shortcuts=one))[0] - exact).mean() for one in kind)
        assert 0 < near < far


def test_every_way_of_drawing_takes_them(make: Make) -> None:
    short, mask = SHORTCUTS["both"], Mask(images.fingerprint(MASK))
    asked = {"prompt": "a red apple", "steps": 3, "shortcuts": short}
    plain, editor = make(4), make(8)
    drawing = replace(plain.drawing("a red apple", steps=3, size=PICTURE.size), shortcuts=short)
    whole = replace(START, strength=1.0)
    for sd, found, expected in (
            (plain, plain.txt2img(**asked, size=PICTURE.size), drawing),
            (plain, plain.img2img(**asked, image=PICTURE, strength=0.8), replace(drawing, start=START)),
            (plain, plain.inpaint(**asked, image=PICTURE, mask=MASK), replace(drawing, start=whole, mask=mask)),
            (editor, editor.edit(**asked, image=PICTURE), replace(drawing, start=whole, image_guidance=1.5))):
        assert apart(np.asarray(found[0]).astype(int), drawn(sd, expected)[0]) == 0


def test_drawings_of_other_shortcuts_are_not_drawn_together(make: Make) -> None:
    sd = make(4)
    one = sd.drawing("a")
    drawings = [one, replace(one, seed=1), *(replace(one, shortcuts=short) for short in SHORTCUTS.values())]
    assert [len(group) for group in sd.batches(drawings, 8)] == [2, 1, 1, 1]


@pytest.mark.parametrize(("make_it", "told"), [
    (lambda: Shortcuts(0), "--reuse-features 0"), (lambda: Shortcuts(1001), "--reuse-features 1001"),
    (lambda: Shortcuts(merge=-0.1), "--merge-tokens -0.1"), (lambda: Shortcuts(merge=0.8), "0 to 0.75"),
    (lambda: Shortcuts(merge=float("nan")), "--merge-tokens nan")])
def test_what_cannot_be_left_out_is_refused(make_it: Callable[[], Shortcuts], told: str) -> None:
    with pytest.raises(MinisdError, match=told) as fault:
        make_it()
    assert fault.value.code == 2 and len(str(fault.value).splitlines()) <= 6


# ---------------------------------------------------------------- by the program
def test_they_are_recorded_and_drawn_again(draw, out) -> None:
    assert draw("a", "--steps", "4", "--reuse-features", "3", "--merge-tokens", "0.5") == 0
    recorded = metadata.read_drawn(out / "00001-0.png")
    assert recorded.drawing.shortcuts == Shortcuts(3, 0.5)
    assert "Token merging ratio: 0.5, Feature reuse: 3" in metadata.a1111(recorded)
    assert draw("--from-image", str(out / "00001-0.png")) == 0
    assert metadata.read_drawn(out / "00002-0.png") == recorded
    assert (out / "00001-0.png").read_bytes() == (out / "00002-0.png").read_bytes()
    assert draw("--from-image", str(out / "00001-0.png"), "--reuse-features", "1", "--merge-tokens", "0") == 0
    exact = metadata.read_drawn(out / "00003-0.png")
    assert exact.drawing == replace(recorded.drawing, shortcuts=EXACT) and "reuse" not in metadata.a1111(exact)
    assert draw("a", "--steps", "4") == 0
    assert (out / "00003-0.png").read_bytes() == (out / "00004-0.png").read_bytes()


def test_cells_of_a_grid(draw, out: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text('[options]\nprompt = "a"\nsteps = 3\n[x]\noption = "reuse-features"\nvalues = [1, 2]\n'
                    '[y]\noption = "merge-tokens"\nvalues = [0.0, 0.5]\n', encoding="utf-8")
    assert draw("--grid", str(grid)) == 0
    found = {metadata.read_drawn(path).drawing.shortcuts: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    assert set(found) == {Shortcuts(n, share) for n in (1, 2) for share in (0.0, 0.5)}
    (out / "00002-0.png").unlink()
    assert draw("--grid", str(grid)) == 0
    again = {metadata.read_drawn(path).drawing.shortcuts: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    assert again.keys() == found.keys()
    assert [one for one in found if again[one] != found[one]] == [Shortcuts(2, 0.0)]


@pytest.mark.parametrize("given", [("--reuse-features", "0"), ("--merge-tokens", "0.9")])
def test_refused_before_anything_is_drawn(draw, out, capsys, given: tuple[str, str]) -> None:
    assert draw("a", *given) == 2
    assert " ".join(given) in capsys.readouterr().err and not out.exists()
