"""What our pictures say of themselves is read whole by another's reader: the package sd-parsers, from PyPI."""

from pathlib import Path

import numpy as np
import pytest
import tiny_model
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import Generators, PromptInfo

from minisd import __version__, images, store
from minisd.generate.__main__ import main

# What is given -> what is read: the prompt, the negative one, the sampler, and what else there is. FILE and MASK
# stand for pictures, #FILE and #MASK for their hashes.
PLAIN = {"Steps": "2", "scheduler": "Karras", "cfg_scale": "7.5", "seed": "0", "Size": "64x64"}
SETS: list[tuple[list[str], str, str, str, dict[str, str]]] = [
    (["a red apple"], "a red apple", "", "DPM++ 2M", {}),
    (["a red apple", "-n", "blurry, dark"], "a red apple", "blurry, dark", "DPM++ 2M", {}),
    (["a", "--sampler", "euler"], "a", "", "Euler", {"scheduler": "Uniform"}),
    (["a", "--sampler", "euler a karras"], "a", "", "Euler a", {}),
    (["a", "--sampler", "ddim"], "a", "", "DDIM", {"scheduler": "DDIM"}),
    (["a", "--sampler", "pndm"], "a", "", "PLMS", {"scheduler": "DDIM"}),
    (["a", "--sampler", "dpm++2m sde exponential"], "a", "", "DPM++ 2M SDE", {"scheduler": "Exponential"}),
    (["a", "--sampler", "heun trailing"], "a", "", "Heun", {"scheduler": "Trailing"}),
    (["a", "--cfg", "1"], "a", "", "DPM++ 2M", {"cfg_scale": "1.0"}),
    (["a", "--cfg", "12.25", "--steps", "5"], "a", "", "DPM++ 2M", {"cfg_scale": "12.25", "Steps": "5"}),
    (["a", "--seed", "18446744073709551615"], "a", "", "DPM++ 2M", {"seed": "18446744073709551615"}),
    (["a", "-W", "72", "-H", "128"], "a", "", "DPM++ 2M", {"Size": "72x128"}),
    (["a (red:1.3) [apple], 50% \\(x\\)"], "a (red:1.3) [apple], 50% \\(x\\)", "", "DPM++ 2M", {}),
    (["猫 🍎 café", "-n", "ß"], "猫 🍎 café", "ß", "DPM++ 2M", {}),
    (["two\nlines: of, a \"prompt\"", "-n", "and\nmore"], "two\nlines: of, a \"prompt\"", "and\nmore", "DPM++ 2M", {}),
    (["a long prompt of words " * 12], ("a long prompt of words " * 12).strip(), "", "DPM++ 2M", {}),
    (["a", "--cfg-rescale", "0.7", "--threshold", "0.995", "--cfg-ramp", "0,1", "--cfg-interval", "0.1,9"], "a", "",
     "DPM++ 2M", {"CFG Rescale": "0.7", "Dynamic thresholding enabled": "True", "Threshold percentile": "99.5",
                  "CFG ramp": "0 1", "CFG interval": "0.1 9"}),
    (["a", "-i", "FILE", "--strength", "0.5"], "a", "", "DPM++ 2M",
     {"Denoising strength": "0.5", "Init image hash": "#FILE", "Size": "72x64"}),
    (["a", "-i", "FILE", "--mask", "MASK", "--feather", "3", "--only-masked", "8"], "a", "", "DPM++ 2M",
     {"Denoising strength": "1.0", "Init image hash": "#FILE", "Mask hash": "#MASK", "Mask blur": "3",
      "Inpaint area": "Only masked", "Masked area padding": "8"}),
    (["a", "--hires", "1.5", "--hires-strength", "0.6", "--hires-steps", "4", "--hires-upscaler", "lanczos"], "a", "",
     "DPM++ 2M", {"Denoising strength": "0.6", "Hires upscale": "1.5", "Hires steps": "4",
                  "Hires upscaler": "Lanczos"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a picture and a mask for those that begin from one."""
    folder = tmp_path_factory.mktemp("readers")
    tiny_model.folder(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "FILE.png")
    white = Image.new("L", (72, 64))
    white.paste(255, (20, 20, 40, 40))
    white.save(folder / "MASK.png")
    return folder


def read(folder: Path, args: list[str], out: Path) -> PromptInfo:
    """The one picture of these options, as the other reads it."""
    files = {name: str(folder / f"{name}.png") for name in ("FILE", "MASK")}
    args = [files.get(arg, arg) for arg in args]
    if "--steps" not in args:
        args += ["--steps", "2"]
    assert main([*args, "--model", str(folder / "tiny"), "--out", str(out), "--device", "cpu"]) == 0
    (path,) = out.iterdir()
    found = ParserManager().parse(path)
    assert found is not None and found.generator == Generators.AUTOMATIC1111
    return found


@pytest.mark.parametrize("row", range(len(SETS)))
def test_every_field_is_read(row: int, folder: Path, tmp_path: Path) -> None:
    args, prompt, negative, name, more = SETS[row]
    found = read(folder, args, tmp_path / "out")
    (sampler,) = found.samplers
    assert [one.value for one in sampler.prompts] == [prompt]
    assert [one.value for one in sampler.negative_prompts] == [negative] * bool(negative)
    assert sampler.name == name and sampler.model is not None
    assert sampler.model.name == "tiny" and sampler.model.hash == store.fingerprint(folder / "tiny")[:10]
    hashes = {"#FILE": images.fingerprint(images.open_picture(folder / "FILE.png"))[:10],
              "#MASK": images.fingerprint(images.open_mask(folder / "MASK.png"))[:10]}
    wanted = {"steps" if key == "Steps" else key: hashes.get(value, value) for key, value in (PLAIN | more).items()}
    assert {**sampler.parameters, **found.metadata} == {**wanted, "Version": f"minisd {__version__}"}
