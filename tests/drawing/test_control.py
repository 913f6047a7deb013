"""Options of control out of range are refused, with the option and what it allows."""

import pytest

from minisd.drawing.control import Fresh, Guide, Hires, Mask, Start, larger, skipped
from minisd.errors import USAGE, MinisdError

SHA = "0123456789abcdef" * 4


@pytest.mark.parametrize(("option", "value", "told"), [
    ("ramp", (0.5, -1.0), "--cfg-ramp -1.0"), ("ramp", (1.0,) * 1001, "1001 shares"),
    ("ramp", (float("nan"),), "0 to 10"),
    ("interval", (2.0, 2.0), "2,2 is empty"), ("interval", (-1.0, 2.0), "--cfg-interval"), ("rescale", 1.5, "0 to 1"),
    ("rescale", float("nan"), "--cfg-rescale"), ("threshold", 0.4, "0.5 to 1"), ("threshold", 1.1, "--threshold")])
def test_guides_refused(option: str, value: object, told: str) -> None:
    with pytest.raises(MinisdError, match=told) as fault:
        Guide(**{option: value})
    assert fault.value.code == USAGE


@pytest.mark.parametrize(("build", "told"), [
    (lambda: Start(SHA, -0.1), "--strength -0.1"), (lambda: Start(SHA, 1.01), "0 to 1"),
    (lambda: Start(SHA, float("nan")), "--strength"), (lambda: Start("../x", 0.5), "not a sha256"),
    (lambda: Mask(SHA.upper()), "not a sha256"), (lambda: Mask(SHA, feather=-1), "--feather"),
    (lambda: Mask(SHA, padding=-1), "--only-masked"), (lambda: Hires(0.5), "--hires-upscale"),
    (lambda: Hires(strength=2), "--hires-strength"), (lambda: Hires(steps=0), "--hires-steps"),
    (lambda: Fresh(-1.0), "--eta"), (lambda: Fresh(churn=float("inf")), "--churn"),
    (lambda: Fresh(low=-1), "churn-low"), (lambda: Fresh(churn=1, low=2, high=1), "--churn-high 1 is out of range"),
    (lambda: Fresh(noise=-1), "churn-noise"), (lambda: Fresh(low=1), "but no --churn"),
    (lambda: Fresh(high=5.0), "but no --churn"), (lambda: Fresh(noise=1.01), "but no --churn"),
    (lambda: Hires(upscaler="esrgan"), "latent or lanczos")])
def test_refused(build, told: str) -> None:
    with pytest.raises(MinisdError, match=told) as fault:
        build()
    assert fault.value.code == USAGE


def test_the_remedy_of_a_strength_that_is_no_step_works() -> None:
    for steps in range(2, 400):
        with pytest.raises(MinisdError) as fault:
            skipped("strength", steps, 0.9 / steps)
        words = fault.value.remedy.split()
        assert skipped("strength", int(words[3]), 0.9 / steps) < int(words[3])
        assert skipped("strength", steps, float(words[-1])) < steps


@pytest.mark.parametrize("pixels", [64, 72, 512, 1000, 2048])
def test_the_remedy_of_an_upscale_that_does_not_fit_works(pixels: int) -> None:
    for upscale in (1.01, 1.37, 2.003, 7.9):
        with pytest.raises(MinisdError) as fault:
            larger("width", pixels, upscale)
        assert larger("width", pixels, float(fault.value.remedy.split()[1].rstrip(","))) % 8 == 0
