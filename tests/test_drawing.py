"""Values out of range are refused, with the option and what it allows."""

from dataclasses import replace

import pytest

from minisd.drawing import SEEDS, Drawing, Guide
from minisd.errors import USAGE, MinisdError

GOOD = Drawing("a red apple", "", 20, 7.5, "dpm++2m karras", 0, 512, 512)
REFUSED = [
    ("steps", 0, "1 to 1000"), ("steps", -1, "1 to 1000"), ("steps", 1001, "1 to 1000"), ("steps", 10**9, "1 to 1000"),
    ("guidance", float("nan"), "--cfg nan"), ("guidance", float("inf"), "0 to 100"), ("guidance", -0.1, "0 to 100"),
    ("guidance", 100.5, "0 to 100"), ("seed", -1, r"0 to 2\^64 - 1"), ("seed", SEEDS, r"0 to 2\^64 - 1"),
    ("width", 0, "64 to 2048"), ("width", -8, "64 to 2048"), ("width", 1, "64 to 2048"), ("width", 500, "496 or 504"),
    ("height", 513, "512 or 520"), ("height", 10**6, "64 to 2048"), ("sampler", "eular", "nearest: euler"),
    ("sampler", "", "no sampler")]


@pytest.mark.parametrize(("option", "value", "told"), REFUSED)
def test_refused(option: str, value: object, told: str) -> None:
    with pytest.raises(MinisdError, match=told) as fault:
        replace(GOOD, **{option: value})
    assert fault.value.code == USAGE and len(str(fault.value).splitlines()) <= 6


@pytest.mark.parametrize(("option", "value"), [
    ("steps", 1), ("steps", 1000), ("guidance", 0.0), ("guidance", 1), ("guidance", 100), ("seed", SEEDS - 1),
    ("width", 64), ("height", 2048), ("width", 72), ("sampler", "DPM++ 2M Karras"), ("prompt", "")])
def test_allowed(option: str, value: object) -> None:
    replace(GOOD, **{option: value})


@pytest.mark.parametrize(("option", "value", "told"), [
    ("ramp", (0.5, -1.0), "--cfg-ramp -1.0"), ("ramp", (1.0,) * 1001, "1001 shares"),
    ("ramp", (float("nan"),), "0 to 10"),
    ("interval", (2.0, 2.0), "2,2 is empty"), ("interval", (-1.0, 2.0), "--cfg-interval"), ("rescale", 1.5, "0 to 1"),
    ("rescale", float("nan"), "--cfg-rescale"), ("threshold", 0.4, "0.5 to 1"), ("threshold", 1.1, "--threshold")])
def test_guides_refused(option: str, value: object, told: str) -> None:
    with pytest.raises(MinisdError, match=told) as fault:
        Guide(**{option: value})
    assert fault.value.code == USAGE
