"""Pictures: every kind opens as it should or is refused, tensors keep every level, files are whole and never lost."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minisd import images
from minisd.errors import BAD_FILE, RESOURCE, MinisdError

PATTERN = Image.fromarray((np.arange(16 * 24 * 3) * 7 % 256).astype(np.uint8).reshape(16, 24, 3))
FLIPS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


# ---------------------------------------------------------------- opening
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if kind == "WEBP" else {}
    marked = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif}
    upright = Image.open(stored(PATTERN, kind, **how)).convert("RGB")
    if orientation in FLIPS:
        upright = upright.transpose(FLIPS[orientation])
    assert np.array_equal(pixels(images.open_picture(stored(PATTERN, kind, **how, **marked))), pixels(upright))


@pytest.mark.parametrize(("mode", "colour", "expected"), [
    ("1", 1, (255, 255, 255)), ("L", 100, (100, 100, 100)), ("RGB", (1, 2, 3), (1, 2, 3)),
    ("LA", (0, 0), (255, 255, 255)), ("RGBA", (255, 0, 0, 128), (255, 127, 127)), ("RGBA", (9, 9, 9, 255), (9, 9, 9)),
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)), ("I;16", 257 * 40, (40, 40, 40)), ("I", 65535, (255, 255, 255)),
    ("I", -5, (0, 0, 0)), ("F", 0.5, (128, 128, 128)), ("F", 7.0, (255, 255, 255)),
    ("F", float("nan"), (0, 0, 0))])
def test_modes(mode: str, colour: object, expected: tuple[int, int, int]) -> None:
    opened = images.open_picture(stored(Image.new(mode, (4, 4), colour), "TIFF"))
    assert opened.mode == "RGB" and opened.getpixel((1, 1)) == expected


def test_transparency_of_palettes_and_keys_goes_over_the_background() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    key = Image.new("RGB", (4, 4), (10, 20, 30))
    for file in (stored(palette, transparency=0), stored(key, transparency=(10, 20, 30))):
        assert images.open_picture(file, background=(1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    assert len(np.unique(pixels(images.open_picture(stored(Image.fromarray(ramp)))))) == 256


def test_the_first_frame_of_a_moving_picture() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    file = stored(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert images.open_picture(file).getpixel((0, 0)) == (255, 0, 0)


WHOLE = {kind: stored(PATTERN, kind).getvalue() for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")}
BROKEN = {f"half a {kind}": data[:len(data) // 2] for kind, data in WHOLE.items() if kind != "BMP"} | {
    "nothing": b"", "text": b"not a picture", "EPS": stored(PATTERN, "EPS").getvalue(),
    "PPM": stored(PATTERN, "PPM").getvalue(), "PDF": stored(PATTERN, "PDF").getvalue()}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_and_foreign_files_are_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(BROKEN[what])
    with pytest.raises(MinisdError, match=r"picture\.jpg") as fault:
        images.open_picture(path)
    assert fault.value.code == BAD_FILE and len(str(fault.value).splitlines()) <= 6


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(MinisdError, match="cannot be read"):
            images.open_picture(path)


def test_too_many_pixels_are_refused_by_the_header() -> None:
    file = stored(Image.new("1", (8200, 8200)))
    with pytest.raises(MinisdError, match="8200x8200"):
        images.open_picture(file)


def test_masks_are_black_and_white_by_half_the_brightness() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    mask = images.open_mask(stored(ramp))
    assert mask.mode == "L" and pixels(mask).flatten().tolist() == [0] * 128 + [255] * 128
    deep = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    assert pixels(images.open_mask(stored(deep))).tolist() == pixels(mask).tolist()
    assert np.array_equal(pixels(images.open_mask(stored(ramp.convert("RGB"), "WEBP", lossless=True))), pixels(mask))
    assert pixels(images.as_mask(Image.new("1", (2, 2), 1))).tolist() == [[255] * 2] * 2


def test_what_is_transparent_in_a_mask_is_black() -> None:
    mask = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    mask.putpixel((1, 2), (255, 255, 255, 255))
    assert images.open_mask(stored(mask)).getbbox() == (1, 2, 2, 3)


def test_a_mask_turned_by_exif_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = Image.new("L", (4, 8))
    mask.putpixel((3, 0), 255)
    assert images.open_mask(stored(mask, exif=exif)).getbbox() == (7, 3, 8, 4)


@pytest.mark.parametrize("mask", [Image.new("L", (4, 4), 127), Image.new("RGBA", (4, 4), (255, 255, 255, 0))])
def test_a_mask_without_white_is_refused(mask: Image.Image, tmp_path: Path) -> None:
    mask.save(tmp_path / "m.png")
    with pytest.raises(MinisdError, match=r"(?s)black all over.*m\.png") as fault:
        images.open_mask(tmp_path / "m.png")
    assert fault.value.code == BAD_FILE


def test_a_picture_that_is_open_already_is_treated_like_its_file() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    file = stored(PATTERN.convert("RGBA"), exif=exif)
    expected = images.open_picture(file)
    file.seek(0)
    assert np.array_equal(pixels(images.as_picture(Image.open(file))), pixels(expected))
    cut = io.BytesIO(WHOLE["PNG"][:len(WHOLE["PNG"]) // 2])
    with pytest.raises(MinisdError, match="cannot be read"):
        images.as_picture(Image.open(cut))
    with pytest.raises(MinisdError, match="8200x8200"):
        images.as_picture(Image.new("1", (8200, 8200)))


def test_a_fingerprint_is_of_the_pixels_and_not_of_the_file() -> None:
    prints = {images.fingerprint(images.open_picture(stored(PATTERN, kind))) for kind in ("PNG", "TIFF", "BMP")}
    assert prints == {images.fingerprint(PATTERN)}
    others = [PATTERN.convert("L"), PATTERN.crop((0, 0, 24, 15)), PATTERN.rotate(180),
              Image.frombytes("RGB", (16, 24), PATTERN.tobytes())]
    assert len({images.fingerprint(other) for other in others} | prints) == 5
    assert images.album(PATTERN) == {images.fingerprint(PATTERN): PATTERN}


# ---------------------------------------------------------------- tensors
def test_every_level_survives_the_way_through_a_tensor() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3))
    x = images.to_tensor(ramp)
    assert x.shape == (3, 1, 256) and x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(pixels(images.to_images(x[None])[0]), pixels(ramp))


def test_what_lies_outside_is_clipped_and_the_rest_rounded() -> None:
    x = torch.tensor([-3.0, 3.0, 0.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1])[None, None, None].expand(1, 3, 1, 5)
    assert pixels(images.to_images(x)[0])[0, :, 0].tolist() == [0, 255, 128, 0, 1]


def test_a_grid_holds_every_picture() -> None:
    colours = ["red", "green", "blue", "black", "yellow"]
    sheet = images.grid([Image.new("RGB", (8, 6), colour) for colour in colours])
    assert sheet.size == (3 * 8 + 2 * images.GAP, 2 * 6 + images.GAP)
    assert {colour for _, colour in sheet.getcolors() or []} == {
        Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in [*colours, "white"]}
    assert images.grid([Image.new("RGB", (8, 6))] * 4, columns=4).size == (4 * 8 + 3 * images.GAP, 6)


# ---------------------------------------------------------------- writing
def test_written_pictures_are_numbered_and_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "00041-7.png").write_bytes(b"older")
    (tmp_path / "99-7.png").write_bytes(b"of another kind")
    paths = [images.write_png(PATTERN, tmp_path, "7", {}) for _ in range(3)]
    assert [path.name for path in paths] == ["00042-7.png", "00043-7.png", "00044-7.png"]
    assert (tmp_path / "00041-7.png").read_bytes() == b"older"
    assert all(np.array_equal(pixels(images.open_picture(path)), pixels(PATTERN)) for path in paths)


def test_a_name_taken_in_the_meantime_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in (1, 2):
        (tmp_path / f"0000{n}-7.png").write_bytes(b"another's")
    monkeypatch.setattr(images, "_next_number", lambda folder: 1)
    assert images.write_png(PATTERN, tmp_path, "7", {}).name == "00003-7.png"
    assert (tmp_path / "00001-7.png").read_bytes() == b"another's"


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    names = [images.write_png(PATTERN, tmp_path, "7", {}).name for _ in range(2)]
    assert names == sorted(path.name for path in tmp_path.iterdir()) == ["00001-7.png", "00002-7.png"]


def test_text_of_any_kind_is_carried(tmp_path: Path) -> None:
    path = images.write_png(PATTERN, tmp_path, "7", {"a": "café", "b": "猫 🍎", "c": "nul\0 and \udc80"})
    with Image.open(path) as image:
        assert image.text == {"a": "café", "b": "猫 🍎", "c": "nul\ufffd and ?"}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MinisdError, match="No space left") as fault:
        images.write_png(PATTERN, tmp_path, "7", {})
    assert fault.value.code == RESOURCE and not list(tmp_path.iterdir())


WRITE_FOREVER = """
import sys
from pathlib import Path
from PIL import Image
from minisd.images import write_png
picture = Image.effect_noise((256, 256), 100).convert("RGB")
print("ready", flush=True)
while True:
    write_png(picture, Path(sys.argv[1]), "7", {})
"""


def test_a_killed_writer_leaves_whole_pictures_only(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    written = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert written
    for path in written:
        images.open_picture(path)
