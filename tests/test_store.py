"""Model folders: what is saved is what is loaded, and whatever is wrong with a folder is said in a sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

from minisd import store
from minisd.config import CLIPVisionConfig
from minisd.drawing.plan import Defaults
from minisd.errors import BAD_FILE, NUMERICAL, USAGE, MinisdError
from minisd.fast.onednn import serves
from minisd.fast.passes import plain
from weights_convert import mapped, write

VISION = CLIPVisionConfig(image_size=32, patch=8, width=16, depth=1, heads=2, projection_dim=32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.folder(tmp_path_factory.mktemp("store"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_saved_is_loaded(tmp_path: Path) -> None:
    cfg = replace(tiny_model.MODEL, vision=VISION, text=tiny_model.MODEL.text * 2)
    saved = tiny_model.modules(cfg)
    store.save(tmp_path / "a", cfg, saved, torch.float32, {"recipe": "test"})
    found, loaded = store.load_modules(tmp_path / "a", store.parts(cfg))
    assert found == cfg
    assert sorted(loaded) == ["text", "text_2", "unet", "vae", "vision"]
    for name, module in saved.items():
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), loaded[name].parameters(), strict=True))
        assert all(weights.requires_grad for weights in loaded[name].parameters())


def test_half_precision_is_the_default_of_a_file(whole: Path) -> None:
    assert {tensor.dtype for tensor in load_file(whole / "unet.safetensors").values()} == {torch.float16}
    _, loaded = store.load_modules(whole, ["unet"], dtype=torch.bfloat16)
    assert {weights.dtype for weights in loaded["unet"].parameters()} == {torch.bfloat16}


def test_one_part_alone(tmp_path: Path) -> None:
    store.save(tmp_path / "a", tiny_model.MODEL, {"vae": tiny_model.modules()["vae"]})
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "vae.safetensors"]
    assert list(store.load_modules(tmp_path / "a", ["vae"])[1]) == ["vae"]
    with pytest.raises(MinisdError, match="vae alone: it has no unet, text"):
        store.load(tmp_path / "a", "cpu")


def test_load_makes_a_model_that_draws(whole: Path) -> None:
    sd = store.load(whole, "cpu", "float32")
    assert (sd.name, sd.dtype, sd.device.type, sd.defaults) == ("tiny", torch.float32, "cpu", Defaults())
    assert not any(weights.requires_grad for weights in sd.unet.parameters())


def test_a_model_states_what_it_likes_best(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"defaults": {"guidance": 3}}))
    sd = store.load(folder, "cpu")
    assert sd.defaults == Defaults(guidance=3.0)
    assert sd.drawing("x").guidance == 3.0 and sd.drawing("x").width == tiny_model.MODEL.size


def test_what_it_likes_best_outlives_an_export(folder: Path) -> None:
    path, parts = folder / "config.json", tiny_model.modules()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"defaults": {"guidance": 3}}))
    before = store.fingerprint(folder)
    store.save(folder, replace(tiny_model.MODEL, latent_scale=2.0), {"vae": parts["vae"]}, torch.float32, keep=True)
    sd = store.load(folder, "cpu", "float32")
    assert sd.defaults == Defaults(guidance=3.0) and sd.cfg.latent_scale == 2.0
    assert torch.equal(sd.vae.decoder.conv_in.weight, parts["vae"].decoder.conv_in.weight)
    assert store.fingerprint(folder) != before
    store.save(folder, tiny_model.MODEL, {}, keep=True, defaults=Defaults(steps=5))
    assert store.load(folder, "cpu").defaults == Defaults(steps=5)
    store.save(folder, tiny_model.MODEL, parts)
    assert store.load(folder, "cpu").defaults == Defaults()


def test_building_under_blank_leaves_nothing_undone(whole: Path) -> None:
    with torch.device("meta"), store.Blank():
        blank = store.parts(replace(tiny_model.MODEL, vision=VISION))
        made = {name: build() for name, build in blank.items()}
    for name, module in made.items():
        plain = store.parts(replace(tiny_model.MODEL, vision=VISION))[name]()
        assert {key: tensor.shape for key, tensor in module.state_dict().items()} == {
            key: tensor.shape for key, tensor in plain.state_dict().items()}
        assert not list(module.buffers())         # a buffer would stay on the meta device


def test_an_older_folder_is_replaced_whole(tmp_path: Path) -> None:
    parts = tiny_model.modules()
    store.save(tmp_path / "a", tiny_model.MODEL, parts)
    store.save(tmp_path / "a", tiny_model.MODEL, {"vae": parts["vae"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "vae.safetensors"]


def test_a_save_that_fails_leaves_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tiny_model.modules()
    store.save(tmp_path / "a", tiny_model.MODEL, parts)
    before = store.fingerprint(tmp_path / "a")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "must_be_finite", full)
    with pytest.raises(OSError, match="No space"):
        store.save(tmp_path / "a", tiny_model.MODEL, tiny_model.modules())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert store.fingerprint(tmp_path / "a") == before


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    parts = tiny_model.modules()
    parts["vae"].decoder.conv_in.weight.data[0, 0, 0, 0] = 1e6       # infinite in float16
    with pytest.raises(MinisdError, match=r"decoder\.conv_in\.weight") as fault:
        store.save(tmp_path / "a", tiny_model.MODEL, parts)
    assert fault.value.code == NUMERICAL and not list(tmp_path.iterdir())


def test_an_unknown_part_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(MinisdError, match="no part named vision") as fault:
        store.save(tmp_path / "a", tiny_model.MODEL, {"vision": torch.nn.Linear(1, 1)})
    assert fault.value.code == USAGE


def test_the_fingerprint_is_of_the_weights(folder: Path) -> None:
    before = store.fingerprint(folder)
    assert len(before) == 64 and store.fingerprint(folder) == before
    (folder / "README.md").write_text("a model card")
    assert store.fingerprint(folder) == before
    weights = load_file(folder / "text.safetensors")
    weights["norm_out.bias"] += 1
    save_file(weights, folder / "text.safetensors")
    assert store.fingerprint(folder) != before


def spoil_tensors(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    weights = {**load_file(folder / "vae.safetensors"), **change}
    save_file({key: tensor for key, tensor in weights.items() if tensor is not None}, folder / "vae.safetensors")


def cut(folder: Path, length: int) -> None:
    path = folder / "vae.safetensors"
    path.write_bytes(path.read_bytes()[:length])


BIAS = "decoder.conv_in.bias"
SPOILT = {
    "empty": (lambda f: cut(f, 0), "file is empty"),
    "half a header": (lambda f: cut(f, 100), "cut off"),
    "cut off": (lambda f: cut(f, -100), "100 are missing"),
    "noise": (lambda f: (f / "vae.safetensors").write_bytes(b"\xff" * 4096), "neither a safetensors"),
    "LFS pointer": (lambda f: (f / "vae.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
                    "git lfs pull"),
    "no file": (lambda f: (f / "vae.safetensors").unlink(), "it has no vae"),
    "a folder for a file": (lambda f: ((f / "vae.safetensors").unlink(), (f / "vae.safetensors").mkdir()),
                            "it has no vae"),
    "a missing tensor": (lambda f: spoil_tensors(f, {BIAS: None}), f"missing {BIAS}"),
    "a stray tensor": (lambda f: spoil_tensors(f, {"position_ids": torch.zeros(1)}), "not known position_ids"),
    "a wrong shape": (lambda f: spoil_tensors(f, {BIAS: torch.zeros(7)}), r"is \[7\], should be \[32\]"),
    "integers": (lambda f: spoil_tensors(f, {BIAS: torch.zeros(32, dtype=torch.int8)}), "torch.int8"),
    "another part's tensors": (lambda f: shutil.copy(f / "unet.safetensors", f / "vae.safetensors"), "and .* more"),
    "no config": (lambda f: (f / "config.json").unlink(), "neither model_index.json nor config.json"),
    "half a config": (lambda f: (f / "config.json").write_text("{"), "JSON cannot be read"),
    "a list for a config": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "a config that is not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\0"), "JSON cannot be read"),
    "a deep config": (lambda f: (f / "config.json").write_text("[" * 100_000), "JSON cannot be read"),
    "an unknown entry": (lambda f: (f / "config.json").write_text('{"sice": 64}'), "sice"),
    "a wrong type": (lambda f: (f / "config.json").write_text('{"size": "64"}'), "size"),
    "wrong defaults": (lambda f: (f / "config.json").write_text('{"defaults": {"cfg": 3}}'), "cfg"),
    "no folder": (lambda f: shutil.rmtree(f), "no such model"),
    "a file for a folder": (lambda f: (shutil.rmtree(f), f.write_text("x")), "this is a file|cut off"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_folder_is_refused(folder: Path, what: str) -> None:
    spoil, sentence = SPOILT[what]
    spoil(folder)
    with pytest.raises(MinisdError, match=sentence) as fault:
        store.load(folder, "cpu")
    assert fault.value.code == BAD_FILE
    assert len(str(fault.value).splitlines()) <= 6 and len(str(fault.value)) < 2000


def test_a_strangers_name_leads_nowhere_else(whole: Path) -> None:
    for name in (str(whole), "../..", "", "tiny"):
        with pytest.raises(MinisdError, match="no embedded model"):
            store.embedded(name)


def test_weights_are_as_readable_as_the_config(whole: Path) -> None:
    assert len({path.stat().st_mode for path in whole.iterdir()}) == 1


def test_weights_stay_in_their_file_until_they_are_laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tiny_model.modules()
    store.save(tmp_path / "a", tiny_model.MODEL, saved, torch.float32)
    monkeypatch.setattr(mapped, "WINDOW", 4000)   # many mappings, as for a large model
    sd = store.load(tmp_path / "a", "cpu", "float32")
    linear = sd.unet.time.in_proj.weight.data_ptr()
    assert sd.unet.conv_in.weight.is_contiguous() and sd.vae.decoder.conv_in.weight.is_contiguous()
    with torch.inference_mode():
        sd.ready()
    weights = sd.unet.conv_in.weight
    assert weights.is_mkldnn or not serves(weights)
    assert sd.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not weights.is_inference() and sd.unet.time.in_proj.weight.data_ptr() == linear
    assert sd.ready() is sd and sd.unet.conv_in.weight is weights
    plain(sd.unet)
    for name, module in (("unet", sd.unet), ("vae", sd.vae), ("text", sd.text[0])):
        assert all(torch.equal(a, b) for a, b in zip(saved[name].parameters(), module.parameters(), strict=True))
