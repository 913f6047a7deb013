"""Checkpoints as other tools leave them: with marks, more parts or fewer; and targets whose names mislead."""

import pytest
import torch
from families import FAMILIES, forgetful, model, same, saved

from minisd import store
from minisd.errors import MinisdError
from weights_convert.__main__ import main
from weights_convert.looks import difference
from weights_convert.model import Model, Part
from weights_convert.read import read_file
from weights_convert.sources import open_model
from weights_convert.tables import controlnet
from weights_convert.write import layout_for, save_file, write

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def sd21(tmp_path_factory):
    """As a stranger's file: nothing in it says what the UNet predicts."""
    folder = tmp_path_factory.mktemp("sd21")
    return forgetful(saved("sd21", folder / "ours.safetensors", "ldm"), folder / "x.safetensors")


@pytest.mark.parametrize(("name", "to"), [("x.ckpt", None), ("x.pt", "ldm"), ("x", "ldm"), ("x.bin", "diffusers"),
                                          ("x.safetensors", "native"), ("x.SafeTensors", "diffusers")])
def test_a_name_that_others_would_read_as_another_kind_of_file_is_refused(name, to, tmp_path, capsys):
    write(model("bk-tiny", only=("vae",)), tmp_path / "vae", "native")
    given = [str(tmp_path / "vae"), str(tmp_path / name), *(["--to", to] if to else [])]
    assert main(given) == 2
    assert "does not go with the layout" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_the_name_tells_the_layout(tmp_path):
    assert layout_for(tmp_path / "x.SAFETENSORS", None) == "ldm"
    assert layout_for(tmp_path / "x-v1.5", None) == "native"


@pytest.mark.parametrize(("metadata", "key", "predicts"), [
    ({"modelspec.prediction_type": "v"}, "", "v"), ({"modelspec.prediction_type": "epsilon"}, "", "epsilon"),
    ({"modelspec.predict_key": "v"}, "", "v"), ({}, "v_pred", "v"), ({"modelspec.prediction_type": "guess"}, "", None)])
def test_what_trainers_and_editors_say_of_the_prediction(metadata, key, predicts, sd21, tmp_path):
    given = read_file(sd21).tensors | ({key: torch.empty(0)} if key else {})
    save_file(tmp_path / "x.safetensors", given, metadata)
    found = open_model(tmp_path / "x.safetensors")
    assert found.predicts == (predicts is not None)
    assert not predicts or (found.cfg.prediction, found.cfg.size) == (predicts, {"v": 768, "epsilon": 512}[predicts])
    write(found.predicting(predicts or "v"), tmp_path / "back.safetensors", "ldm")
    assert same(tmp_path / "x.safetensors", tmp_path / "back.safetensors")


def test_what_sd1_does_not_use_of_clip_is_carried_along(tmp_path):
    given = read_file(saved("bk-tiny", tmp_path / "x.safetensors", "ldm")).tensors | {
        "cond_stage_model.logit_scale": torch.tensor(4.6), "cond_stage_model.text_projection": torch.eye(3),
        "scale_factor": torch.tensor(0.18215)}
    save_file(tmp_path / "y.safetensors", given, {})
    write(open_model(tmp_path / "y.safetensors"), tmp_path / "folder", "diffusers")
    write(open_model(tmp_path / "folder"), tmp_path / "z.safetensors", "ldm")
    assert same(tmp_path / "y.safetensors", tmp_path / "z.safetensors")


def test_two_parts_keep_their_prefixes(tmp_path):
    two = model("bk-tiny", only=("unet", "text"))
    write(two, tmp_path / "native", "native")
    write(open_model(tmp_path / "native"), tmp_path / "x.safetensors", "ldm")
    found = open_model(tmp_path / "x.safetensors")
    assert found.parts.keys() == {"unet", "text"}
    assert UNET + "out.2.bias" in read_file(tmp_path / "x.safetensors").tensors
    with pytest.raises(MinisdError, match="whole pipeline or one part"):
        write(found, tmp_path / "folder", "diffusers")
    assert not (tmp_path / "folder").exists()


def test_a_checkpoint_with_its_controlnet(tmp_path):
    cfg = FAMILIES["bk-base"].unet
    whole = model("bk-base")
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.parts["unet"].tensors.items()}
    shapes |= {f"hint.{n}.weight": (width, 3, 3, 3) for n, width in enumerate([16, 16, 32, 32, 96, 96, 256, 64])}
    ours = {name: torch.randn(shapes.get(name, (3,))) for row in controlnet.rows(cfg, "ours") for name in row.ours}
    steered = {**whole.parts, "controlnet": Part("controlnet", "ours", cfg, ours)}
    write(Model("memory", "native", steered, whole.cfg, ()), tmp_path / "x.safetensors", "ldm")
    write(open_model(tmp_path / "x.safetensors"), tmp_path / "folder", "diffusers")
    found = open_model(tmp_path / "folder")
    assert found.parts.keys() == {"unet", "vae", "text", "controlnet"}
    write(found, tmp_path / "y.safetensors", "ldm")
    assert same(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    with pytest.raises(MinisdError, match="no place for a ControlNet"):
        write(found, tmp_path / "native", "native")


def test_shapes_without_a_name_are_told_by_their_kin():
    assert model("bk-base").family == "SD1-like checkpoint"
    assert model("sd21", only=("unet",)).family == "SD2-like unet alone"
    assert open_model(store.find("emoji")).family == "SD1-like checkpoint"        # a label alone makes no SDXL


def test_a_difference_in_the_dtype_only_is_said():
    assert difference(torch.ones(3), torch.ones(3).half()) == "float32 and float16, values equal"
    assert difference(torch.ones(3), torch.ones(3)) == ""
