"""Checkpoints in and out: recognised, carried to the bit, written whole or not at all, and refused with a sentence."""

import gzip
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from comparison import on_meta, random_model
from families import FAMILIES, forgetful, model, same, saved, tensors
from safetensors.torch import save_file as their_save_file

import minisd
from minisd.config import CLIP_H, CLIP_L, PRESETS, UNetConfig, VAEConfig
from minisd.errors import MinisdError
from minisd.unet import UNet
from weights_convert import detect, vocabulary
from weights_convert.__main__ import main
from weights_convert.detect import KINDS, REFINER
from weights_convert.folders import weights_of
from weights_convert.model import Model, Part
from weights_convert.read import read_file
from weights_convert.sources import EMA_UNET, PREFIXES, open_model
from weights_convert.tables import clip, controlnet, unet, vae
from weights_convert.translate import translate
from weights_convert.write import save_file, write

KEYS = Path(__file__).parent.parent / "goldens" / "keys"
SUFFIX = {"native": "", "ldm": ".safetensors", "diffusers": ""}


def keys(name):
    return {key: tuple(shape) for key, shape in json.loads(gzip.decompress(
        (KEYS / f"{name}.json.gz").read_bytes())).items()}


def changed(path, target, change):
    """A copy of a single file with other tensors, which says nothing of its config."""
    given = dict(read_file(path).tensors)
    change(given)
    save_file(target, given, {"format": "pt"}, None, True)
    return target


@pytest.fixture(scope="session")
def ldm(tmp_path_factory):
    root = tmp_path_factory.mktemp("ldm")
    return cache(lambda name: saved(name, root / f"{name}.safetensors", "ldm"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return saved("bk-tiny", tmp_path_factory.mktemp("diffusers") / "bk-tiny", "diffusers")


# ---------------------------------------------------------------- families and key lists
@pytest.mark.parametrize(("file", "part", "dialect", "cfg"), [
    ("unet-sd15-ldm", "unet", "ldm", PRESETS["sd15"]),
    ("unet-sd15-diffusers", "unet", "diffusers", PRESETS["sd15"]),
    ("unet-sd15-inpaint-ldm", "unet", "ldm", PRESETS["sd15-inpaint"]),
    ("unet-sd15-pix2pix-ldm", "unet", "ldm", PRESETS["sd15-pix2pix"]),
    ("unet-sd21-ldm", "unet", "ldm", PRESETS["sd21"]),
    ("unet-sdxl-ldm", "unet", "ldm", PRESETS["sdxl"]), ("unet-sdxl-refiner-ldm", "unet", "ldm", REFINER),
    ("text-sd15-ldm", "text", "hf-bare", CLIP_L),
    ("text-sd21-openclip", "text", "openclip", replace(CLIP_H, skipped_layers=0, projection_dim=1024)),
])
def test_real_keys_tell_part_dialect_and_config(file, part, dialect, cfg):
    assert detect.part_of(keys(file)) == (part, dialect)
    assert detect.config_of(part, dialect, keys(file)) == cfg


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dialect", unet.DIALECTS)
def test_every_preset_is_recognised_in_every_dialect(preset, dialect):
    cfg = PRESETS[preset]
    shapes = {name: tuple(t.shape) for name, t in meta(cfg).items()}
    theirs = {row.theirs[0]: shapes[row.ours[0]] for row in unet.rows(cfg, dialect)}
    found = detect.config_of("unet", dialect, theirs)
    assert found == (cfg if preset != "tiny" else replace(cfg, heads=8, groups=32))


@cache
def meta(cfg: UNetConfig):
    return on_meta(UNet, cfg).state_dict()


WHOLE = {
    "sd15": (1131, [("model.diffusion_model.", unet.rows(PRESETS["sd15"], "ldm")),
                    ("cond_stage_model.transformer.", clip.text_rows(CLIP_L, "hf"))]),
    "sd21": (1228, [("model.diffusion_model.", unet.rows(PRESETS["sd21"], "ldm")),
                    ("cond_stage_model.model.", clip.text_rows(replace(CLIP_H, projection_dim=1024), "openclip"))]),
    "sdxl": (2515, [("model.diffusion_model.", unet.rows(PRESETS["sdxl"], "ldm")),
                    ("conditioner.embedders.0.transformer.", clip.text_rows(CLIP_L, "hf")),
                    ("conditioner.embedders.1.model.", clip.text_rows(
                        replace(CLIP_H, width=1280, depth=32, heads=20, projection_dim=1280), "openclip"))]),
}


@pytest.mark.parametrize("family", WHOLE)
def test_whole_checkpoints_have_as_many_keys_as_the_real_ones(family):
    count, parts = WHOLE[family]
    parts = [*parts, ("first_stage_model.", vae.rows(VAEConfig(), "ldm"))]
    names = [prefix + name for prefix, rows in parts for row in rows for name in row.theirs]
    assert len(names) == len(set(names)) == count
    assert all(prefix in PREFIXES for prefix, _ in parts)


def test_a_controlnet_goes_both_ways_with_every_key_and_shape():
    cfg, lists = PRESETS["sd15"], {dialect: keys(f"controlnet-sd15-{dialect}") for dialect in ("ldm", "diffusers")}
    for one, other in (("ldm", "diffusers"), ("diffusers", "ldm")):
        given = {name: torch.empty(shape, device="meta") for name, shape in lists[one].items()}
        made = translate(given, controlnet.rows(cfg, one), controlnet.rows(cfg, other))
        assert len(made) == 340 and {name: tuple(t.shape) for name, t in made.items()} == lists[other]
        assert detect.config_of("controlnet", one, lists[one]) == cfg


# ---------------------------------------------------------------- round trips
@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back_is_equal_to_the_bit_between_every_two_layouts(name, tmp_path):
    first = {to: saved(name, tmp_path / f"{to}{end}", to) for to, end in SUFFIX.items()}
    for one in SUFFIX:
        for other in SUFFIX.keys() - {one}:
            there, back = tmp_path / f"{one}-{other}{SUFFIX[other]}", tmp_path / f"{one}-{other}-{one}{SUFFIX[one]}"
            write(open_model(first[one]), there, other)
            write(open_model(there), back, one)
            assert same(first[one], back), f"{one} to {other} and back"


def test_a_precision_is_cast_and_nothing_else(tmp_path, ldm):
    write(open_model(ldm("bk-tiny")), tmp_path / "half", "native", torch.float16)
    before, after = tensors(ldm("bk-tiny")), open_model(tmp_path / "half").parts["unet"].tensors
    assert all(tensor.dtype == torch.float16 for tensor in after.values())
    assert torch.equal(after["conv_in.weight"], before["model.diffusion_model.input_blocks.0.0.weight"].half())


@pytest.mark.parametrize(("family", "part"), [("bk-tiny", "unet"), ("bk-tiny", "vae"), ("bk-tiny", "text"),
                                              ("sd21", "unet"), ("sd21", "text")])
def test_a_part_alone(family, part, tmp_path):
    alone = model(family, only=(part,))
    write(alone, tmp_path / "a.safetensors", "ldm")
    write(open_model(tmp_path / "a.safetensors"), tmp_path / "folder", "diffusers")
    write(open_model(tmp_path / "folder"), tmp_path / "b.safetensors", "ldm")
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert open_model(tmp_path / "b.safetensors").family.endswith(f"{part} alone")
    with pytest.raises(MinisdError, match=f"{part} alone: it has no"):
        minisd.load(tmp_path / "b.safetensors")


def test_a_controlnet_alone(tmp_path):
    cfg = FAMILIES["bk-base"].unet
    shapes = {name: tuple(t.shape) for name, t in meta(cfg).items()}
    widths = [16, 16, 32, 32, 96, 96, 256, 64]
    shapes |= {f"hint.{n}.weight": (width, 3, 3, 3) for n, width in enumerate(widths)}
    ours = {name: torch.randn(shapes.get(name, (3,))) for row in controlnet.rows(cfg, "ours") for name in row.ours}
    part = Part("controlnet", "ours", cfg, ours)
    write(Model("memory", "native", {"controlnet": part}, FAMILIES["bk-base"], ()), tmp_path / "a.safetensors", "ldm")
    write(open_model(tmp_path / "a.safetensors"), tmp_path / "folder", "diffusers")
    write(open_model(tmp_path / "folder"), tmp_path / "b.safetensors", "ldm")
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["conditioning_embedding_out_channels"] == [
        16, 32, 96, 256]


def test_schedule_buffers_and_position_ids_are_carried_along(ldm, tmp_path):
    extra = {"betas": torch.linspace(0, 1, 5), "cond_stage_model.transformer.text_model.embeddings.position_ids":
             torch.arange(77)[None]}
    source = changed(ldm("bk-tiny"), tmp_path / "a.safetensors", lambda given: given.update(extra))
    write(open_model(source), tmp_path / "folder", "diffusers")
    write(open_model(tmp_path / "folder"), tmp_path / "b.safetensors", "ldm")
    assert same(source, tmp_path / "b.safetensors")


# ---------------------------------------------------------------- A10: EMA
def test_ema_copies_are_taken_only_when_asked_for(ldm, tmp_path, capsys):
    prefix = "model.diffusion_model."

    def with_copies(given):
        for key in [key for key in given if key.startswith(prefix)]:
            given[EMA_UNET + key.removeprefix(prefix).replace(".", "")] = given[key] * 2
        given["model_ema.decay"] = torch.tensor(0.5)
    source = changed(ldm("bk-tiny"), tmp_path / "a.safetensors", with_copies)
    trained, averaged = open_model(source), open_model(source, ema=True)
    key = "input_blocks.0.0.weight"
    assert torch.equal(averaged.parts["unet"].tensors[key], 2 * trained.parts["unet"].tensors[key])
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert "EMA copies are left out: the weights as trained are taken" in capsys.readouterr().out
    with pytest.raises(MinisdError, match="no EMA copies"):
        open_model(ldm("bk-tiny"), ema=True)


def test_a_ckpt_of_the_original_layout(ldm, tmp_path):
    held = {"state_dict": dict(tensors(ldm("bk-tiny"))), "epoch": 3, "global_step": 9,
            "optimizer_states": [{"state": {}}], "callbacks": {UNetConfig: {"best": 1}}}
    torch.save(held, tmp_path / "x.ckpt")
    write(open_model(tmp_path / "x.ckpt"), tmp_path / "x.safetensors", "ldm")
    assert same(ldm("bk-tiny"), tmp_path / "x.safetensors")
    assert open_model(tmp_path / "x.ckpt").notes


# ---------------------------------------------------------------- A11, A12: wrong files
@pytest.mark.parametrize(("names", "sentence"), [
    ({"lora_unet_down_blocks_0.lora_up.weight": (4, 4)}, "this is a LoRA"),
    ({"emb_params": (2, 768)}, "this is a textual inversion"), ({"<cat>": (768,)}, "this is a textual inversion"),
    ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "this is a textual inversion"),
    ({"joint_blocks.0.w": (2,)}, "an SD3 checkpoint"),
    ({"double_blocks.0.w": (2,)}, "a Flux checkpoint"), ({"fc.weight": (2, 2)}, "no part of a Stable Diffusion model"),
])
def test_other_files_are_called_by_their_names(names, sentence, tmp_path, capsys):
    their_save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "x.safetensors")
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "out")]) == 3
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("preset", "sentence"), [
    ("sdxl", "this is an SDXL"), ("sdxl-refiner", "this is an SDXL refiner")])
def test_what_cannot_be_drawn_is_named(preset, sentence):
    cfg = detect.KNOWN[preset]
    alone = Model("x", "ldm", {"unet": Part("unet", "ours", cfg, {})}, FAMILIES["sd15"], ())
    with pytest.raises(MinisdError, match=sentence):
        alone.must_be_drawable()


def test_missing_stray_and_misshapen_keys(ldm, tmp_path, capsys):
    key = "model.diffusion_model.out.2.bias"
    faults = {"missing out.2.bias": lambda given: given.pop(key),
              "not known unheard.of": lambda given: given.update({"model.diffusion_model.unheard.of": torch.ones(1)}),
              "is [7], should be [4]": lambda given: given.update({key: torch.ones(7)}),
              "belong to no part": lambda given: given.update({"unheard.of": torch.ones(1)}),
              "not floating-point": lambda given: given.update({key: torch.ones(4, dtype=torch.int8)})}
    for n, (sentence, change) in enumerate(faults.items()):
        source = changed(ldm("bk-tiny"), tmp_path / f"{n}.safetensors", change)
        assert main([str(source), str(tmp_path / "out")]) == 3
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_sd2_is_not_guessed(ldm, tmp_path, capsys):
    source = forgetful(ldm("sd21"), tmp_path / "x.safetensors")
    assert main([str(source), str(tmp_path / "out")]) == 2
    assert "--prediction" in capsys.readouterr().err
    with pytest.raises(MinisdError, match="epsilon or v"):
        minisd.load(source)
    assert minisd.load(source, prediction="v").cfg.prediction == "v"
    assert minisd.load(ldm("sd21")).cfg.prediction == "v"  # a file of ours says so itself


# ---------------------------------------------------------------- A13: values
def test_weights_that_are_not_finite(ldm, tmp_path, capsys):
    def spoil(given):
        given["first_stage_model.quant_conv.bias"] = torch.full((8,), torch.nan)
    source = changed(ldm("bk-tiny"), tmp_path / "x.safetensors", spoil)
    assert main([str(source), str(tmp_path / "out")]) == 5
    assert "encoder.moments.bias" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors"]
    assert main(["verify", str(source)]) == 5
    assert main([str(source), str(tmp_path / "out"), "--allow-nonfinite"]) == 0


# ---------------------------------------------------------------- A14, A15: folders
def copied(folder, target):
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(folder)).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("gone", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json",
                                  "scheduler/scheduler_config.json"])
def test_a_missing_component(gone, folder, tmp_path, capsys):
    broken = copied(folder, tmp_path / "broken")
    (broken / gone).unlink()
    assert main([str(broken), str(tmp_path / "out")]) == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "..", "", 7, "gone.safetensors"])
def test_a_shard_that_is_not_there_or_elsewhere(shard, folder, tmp_path):
    broken = copied(folder / "unet", tmp_path / "unet")
    (broken / "diffusion_pytorch_model.safetensors").rename(tmp_path / "x.safetensors")
    (broken / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(MinisdError, match="shard") as caught:
        weights_of(broken)
    assert caught.value.code == 3


def test_code_in_a_folder_is_never_imported(folder, tmp_path):
    odd = copied(folder, tmp_path / "odd")
    (odd / "unet" / "model.py").write_text("raise SystemExit('run')")
    (odd / "pipeline.py").write_text("raise SystemExit('run')")
    assert open_model(odd).whole
    index = json.loads((odd / "model_index.json").read_text())
    (odd / "model_index.json").write_text(json.dumps(index | {"_class_name": ["pipeline", "Mine"]}))
    with pytest.raises(MinisdError, match="not a Stable Diffusion pipeline"):
        open_model(odd)


@pytest.mark.parametrize(("name", "change"), [
    ("merges.txt", lambda text: text[:-20]), ("merges.txt", lambda text: text.replace("\n", "\r\n")),
    ("merges.txt", lambda text: "\ufeff" + text), ("merges.txt", lambda text: "\n".join(reversed(text.split("\n")))),
    ("vocab.json", lambda text: text.replace('": 300,', '": 301,')), ("vocab.json", lambda text: text[:-9]),
])
def test_a_damaged_tokenizer(name, change, folder, tmp_path):
    broken = copied(folder, tmp_path / "broken")
    path = broken / "tokenizer" / name
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode())
    with pytest.raises(MinisdError, match="tokenizer") as caught:
        open_model(broken)
    assert caught.value.code == 3


def test_the_whole_vocabulary_is_clips():
    merges = vocabulary.merges_of(CLIP_L)
    assert len(merges) == 48_894 and len(vocabulary.tokens_of(merges)) == 49_408


# ---------------------------------------------------------------- A17: targets
def test_nothing_is_overwritten_and_odd_places_are_told(ldm, tmp_path, capsys):
    source = str(ldm("bk-tiny"))
    assert main([source, str(tmp_path / "ein Ordner ü" / "x")]) == 0
    assert main([source, str(tmp_path / "ein Ordner ü" / "x")]) == 2
    assert "ever overwritten" in capsys.readouterr().err
    assert main([source, str(tmp_path / ("x" * 4000))]) == 4
    assert main(["x" * 4000, str(tmp_path / "y")]) == 3
    (tmp_path / "file").write_text("")
    assert main([source, str(tmp_path / "file" / "x")]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ein Ordner ü", "file"]


# ---------------------------------------------------------------- looking
def test_inspect_verify_diff_and_parity(ldm, folder, tmp_path, capsys):
    assert main(["inspect", str(ldm("bk-tiny"))]) == 0
    assert "3,899,396 parameters, float32, LDM's names" in capsys.readouterr().out
    assert main(["verify", str(folder)]) == 0
    assert "cannot be proven" in capsys.readouterr().out
    assert main(["diff", str(ldm("bk-tiny")), str(folder)]) == 0
    assert "equal" in capsys.readouterr().out
    assert main(["parity", str(ldm("bk-tiny")), str(folder)]) == 0
    assert "first layer over 1e-05: none" in capsys.readouterr().out

    def bend(given):
        given["model.diffusion_model.input_blocks.1.0.in_layers.2.weight"] *= 1.5
    bent = changed(ldm("bk-tiny"), tmp_path / "bent.safetensors", bend)
    assert main(["parity", str(folder), str(bent)]) == 1
    assert "first layer over 1e-05: unet.down.0.res.0.conv1;" in capsys.readouterr().out


def test_parity_of_what_cannot_be_compared(ldm, tmp_path, capsys):
    for part in ("vae", "text"):
        write(model("bk-tiny", only=(part,)), tmp_path / f"{part}.safetensors", "ldm")
    assert main(["parity", str(ldm("sd15")), str(ldm("sd15-inpaint"))]) == 2
    assert "conv_in.weight: [64, 4, 3, 3] and [64, 9, 3, 3]" in capsys.readouterr().err
    assert main(["parity", str(ldm("sd15")), str(ldm("bk-tiny"))]) == 2
    assert main(["parity", str(tmp_path / "vae.safetensors"), str(tmp_path / "text.safetensors")]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert main(["parity", str(tmp_path / "vae.safetensors"), str(ldm("bk-tiny"))]) == 0
    assert "not compared: text, unet" in capsys.readouterr().out


def test_tensors_begin_with_a_line_of_the_cache(ldm):
    found = read_file(ldm("bk-tiny")).tensors
    large = {key: tensor for key, tensor in found.items() if tensor.nbytes % 64 == 0}
    assert len(large) > len(found) * 0.9 and all(tensor.data_ptr() % 64 == 0 for tensor in large.values())


def test_what_is_written_says_where_it_comes_from(ldm, tmp_path):
    write(open_model(ldm("bk-tiny")), tmp_path / "out", "native")
    told = read_file(tmp_path / "out" / "unet.safetensors").metadata
    assert told["minisd.dialect"] == "ldm" and len(told["minisd.source_sha256"]) == 64


def test_kinds_have_a_part_for_every_place():
    assert {name.removesuffix("_2") for name in PREFIXES.values()} <= KINDS.keys()
    assert random_model(UNet, FAMILIES["bk-tiny"].unet).cfg == FAMILIES["bk-tiny"].unet
