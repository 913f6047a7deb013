"""What a picture says of itself is read back as it was, and a stranger's file can do no harm."""

import json
import struct
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from minisd import images
from minisd.drawing import metadata
from minisd.drawing.control import Fresh, Guide, Hires, Mask, Start
from minisd.drawing.plan import Drawing
from minisd.errors import BAD_FILE, MinisdError

DRAWN = metadata.Drawn(Drawing("a red apple", "blurry", 20, 7.5, "dpm++2m karras", 42, 512, 640),
                       "emoji", "0123456789abcdef" * 4, "cpu", "float32", 4, "0.1.0")
RECORD = asdict(DRAWN)


def written(folder: Path, text: dict[str, str]) -> Path:
    return images.write_png(Image.new("RGB", (8, 8)), folder, "42", text)


def test_the_text_that_other_tools_read() -> None:
    assert metadata.a1111(DRAWN) == (
        "a red apple\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, "
        "Seed: 42, Size: 512x640, Model hash: 0123456789, Model: emoji, Version: minisd 0.1.0")
    plain = replace(DRAWN, drawing=replace(DRAWN.drawing, negative=""), model="a, b: c")
    assert "Negative" not in metadata.a1111(plain) and 'Model: "a, b: c", ' in metadata.a1111(plain)


SHA, OTHER = "89abcdef01234567" * 4, "fedcba9876543210" * 4
CONTROLLED = {                                    # what is changed, and what the text says of it
    "img2img": ({"start": Start(SHA, 0.6)}, "Denoising strength: 0.6, Init image hash: 89abcdef01"),
    "inpaint": ({"start": Start(SHA, 1.0), "mask": Mask(OTHER, 4)},
                "Denoising strength: 1.0, Init image hash: 89abcdef01, Mask blur: 4, Mask hash: fedcba9876"),
    "only masked": ({"start": Start(SHA, 1.0), "mask": Mask(OTHER, 0, 32)},
                    "Denoising strength: 1.0, Init image hash: 89abcdef01, Mask blur: 0, Mask hash: fedcba9876, "
                    "Inpaint area: Only masked, Masked area padding: 32"),
    "edit": ({"start": Start(SHA, 1.0), "image_guidance": 1.5},
             "Denoising strength: 1.0, Init image hash: 89abcdef01"),
    "hires": ({"hires": Hires(2.0, 0.55, 12)},
              "Denoising strength: 0.55, Hires upscale: 2.0, Hires steps: 12, Hires upscaler: Latent"),
    "hires in pixels": ({"hires": Hires(1.5, 0.5, None, "lanczos")},
                        "Denoising strength: 0.5, Hires upscale: 1.5, Hires upscaler: Lanczos"),
    "guide": ({"guide": Guide((0, 1, 0.5), (0.3, 5.0), 0.7, 0.995)},
              "CFG Rescale: 0.7, Dynamic thresholding enabled: True, Threshold percentile: 99.5, CFG ramp: 0 1 0.5, "
              "CFG interval: 0.3 5"),
    "eta": ({"sampler": "euler a karras", "fresh": Fresh(0.5)}, "Eta: 0.5"),
    "churn": ({"sampler": "heun karras", "fresh": Fresh(None, 10.0, 0.1, 20.0, 1.01)},
              "Sigma churn: 10.0, Sigma tmin: 0.1, Sigma tmax: 20.0, Sigma noise: 1.01"),
}


@pytest.mark.parametrize("what", CONTROLLED)
def test_control_is_told_in_a1111s_words_and_read_back(what: str, tmp_path: Path) -> None:
    change, told = CONTROLLED[what]
    drawn = replace(DRAWN, drawing=replace(DRAWN.drawing, **change))
    plain, _, version = metadata.a1111(DRAWN).rpartition(", Version")
    plain = plain.replace("DPM++ 2M", {"eta": "Euler a", "churn": "Heun"}.get(what, "DPM++ 2M"))
    if what == "edit":
        plain = plain.replace("CFG scale: 7.5, ", "CFG scale: 7.5, Image CFG scale: 1.5, ")
    assert metadata.a1111(drawn) == f"{plain}, {told}, Version{version}"
    assert metadata.read_drawn(written(tmp_path, metadata.chunks(drawn))) == drawn


def test_a_record_of_before_there_was_control_is_read(tmp_path: Path) -> None:
    older = {key: RECORD["drawing"][key] for key in
             ("prompt", "negative", "steps", "guidance", "sampler", "seed", "width", "height")}
    assert metadata.read_drawn(written(tmp_path, record(drawing=older))) == DRAWN


@pytest.mark.parametrize("prompt", ["a red apple", "猫 🍎 café", "", "two\nlines", "nul \0 \udc80 \\", "x" * 10_000])
def test_what_is_written_is_read(prompt: str, tmp_path: Path) -> None:
    drawn = replace(DRAWN, drawing=replace(DRAWN.drawing, prompt=prompt))
    assert metadata.read_drawn(written(tmp_path, metadata.chunks(drawn))) == drawn


def test_a_picture_saved_again_by_others_may_keep_its_text_at_the_end(tmp_path: Path) -> None:
    path = written(tmp_path, {})
    data, body = path.read_bytes(), b"tEXtminisd\0" + json.dumps(RECORD).encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:-12] + chunk + data[-12:])
    assert metadata.read_drawn(path) == DRAWN


def record(**changes: object) -> dict[str, str]:
    return {"minisd": json.dumps(RECORD | changes)}


def drawing(**changes: object) -> dict[str, str]:
    return record(drawing=RECORD["drawing"] | changes)


REFUSED = {
    "no text": ({}, "carries no 'minisd'"), "a list": ({"minisd": "[]"}, "carries no"),
    "no JSON": ({"minisd": "{"}, "cannot be read"), "a deep one": ({"minisd": "[" * 60_000}, "cannot be read"),
    "a long number": ({"minisd": '{"version": ' + "9" * 10_000 + "}"}, "cannot be read"),
    "a long text": (drawing(prompt="x" * 100_000), "carries no"),
    "an unknown entry": (record(lora="/etc/passwd"), "lora"), "a wrong type": (drawing(seed="1"), "seed"),
    "a wrong truth": (drawing(steps=True), "steps"), "too many steps": (drawing(steps=10**9), "1 to 1000"),
    "a huge picture": (drawing(width=10**6), "64 to 2048"), "a strange sampler": (drawing(sampler="x"), "no sampler"),
    "no number": (drawing(guidance=float("nan")), "cfg nan"),
    "a path for a hash": (drawing(start={"sha256": "../../etc/passwd", "strength": 0.5}), "not a sha256"),
    "a huge feather": (drawing(start=asdict(Start(SHA)), mask={"sha256": SHA, "feather": 10**9}), "--feather"),
    "a strange upscaler": (drawing(hires={"upscaler": "x"}), "hires"),
    "an eta for none": (drawing(sampler="lms", fresh={"eta": 0.5}), "has no eta"),
    "a mask without a picture": (drawing(mask=asdict(Mask(SHA))), "no picture"),
    "a missing entry": ({"minisd": json.dumps({"model": "emoji"})}, "drawing"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_strangers_record_is_refused(what: str, tmp_path: Path) -> None:
    text, told = REFUSED[what]
    with pytest.raises(MinisdError, match=told) as fault:
        metadata.read_drawn(written(tmp_path, text))
    assert fault.value.code == BAD_FILE and len(str(fault.value).splitlines()) <= 6


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, metadata.chunks(DRAWN))
    data = path.read_bytes()
    place = data.index(b"tEXtminisd") + 30
    endless = data[:8] + (b"\0\0\0\0none" + b"\0" * 4) * (metadata.MAX_CHUNKS + 1)
    for broken in (b"", b"text", data[:20], data[:place], data[:place] + b"?" + data[place + 1:], endless,
                   data[:8] + b"\xff\xff\xff\xfftEXtminisd\0"):
        path.write_bytes(broken)
        with pytest.raises(MinisdError) as fault:
            metadata.read_drawn(path)
        assert fault.value.code == BAD_FILE
    for missing in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(MinisdError):
            metadata.read_drawn(missing)
