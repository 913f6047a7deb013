"""The shared model folder: parts come and go one by one, each file whole."""

import json
from dataclasses import replace

import pytest
import torch

from minisd import store
from minisd.drawing.plan import Defaults
from minisd.errors import NUMERICAL, USAGE, MinisdError
from minisd.train.tasks import model


def test_new_weights_follow_from_the_seed_alone(recipe):
    torch.manual_seed(1)
    first = model.new(recipe.model, "vae", 5).state_dict()
    torch.manual_seed(2)
    again, other = (model.new(recipe.model, "vae", seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(t, again[name]) for name, t in first.items())
    assert not all(torch.equal(t, other[name]) for name, t in first.items())


def test_a_new_unet_says_nothing_and_its_blocks_pass_on_what_comes_in(recipe):
    unet = model.new(recipe.model, "unet", 0)
    x = torch.randn(1, 4, 8, 8)
    assert (unet(x, torch.tensor([3]), torch.randn(1, 5, 16), torch.randn(1, 16)) == 0).all()
    block = unet.down[0].res[0]
    h = torch.randn(1, 8, 8, 8)
    assert torch.equal(block(h, torch.randn(1, 32)), h)


def test_parts_are_put_beside_each_other(recipe, tmp_path):
    folder, cfg = tmp_path / "model", recipe.model
    vae, text = (model.new(cfg, name, 0) for name in ("vae", "text"))
    model.put(folder, cfg, {"vae": vae})
    kept = (folder / "vae.safetensors").stat().st_mtime_ns
    model.put(folder, replace(cfg, latent_scale=2.0), {"text": text})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "text.safetensors", "vae.safetensors"]
    assert (folder / "vae.safetensors").stat().st_mtime_ns == kept
    assert store.read_config(folder).latent_scale == 2.0
    assert torch.equal(model.take_text(folder).token.weight, text.token.weight.half().float())
    assert not any(p.requires_grad for p in model.take_vae(folder).parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_model_likes_best_is_kept(recipe, tmp_path):
    folder, vae = tmp_path / "model", model.new(recipe.model, "vae", 0)
    store.save(folder, recipe.model, {"vae": vae}, defaults=Defaults(guidance=3.0))
    model.put(folder, recipe.model, {"vae": vae})
    assert json.loads((folder / "config.json").read_text())["defaults"]["guidance"] == 3.0


def test_weights_that_are_not_finite_leave_the_folder_as_it_was(recipe, tmp_path):
    folder, vae = tmp_path / "model", model.new(recipe.model, "vae", 0)
    model.put(folder, recipe.model, {"vae": vae})
    before = (folder / "vae.safetensors").read_bytes()
    with torch.no_grad():
        vae.decoder.conv_in.weight[0, 0, 0, 0] = 1e6           # infinite in half precision
    with pytest.raises(MinisdError, match="not finite") as error:
        model.put(folder, recipe.model, {"vae": vae})
    assert error.value.code == NUMERICAL and (folder / "vae.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_missing_and_what_is_new(recipe, tmp_path):
    with pytest.raises(MinisdError, match="the model has no text yet") as error:
        model.take_text(tmp_path)
    assert error.value.code == USAGE
    made = model.take_or_new(tmp_path, recipe.model, "text", 3)
    assert torch.equal(made.token.weight, model.new(recipe.model, "text", 3).token.weight)


def test_parts_must_be_the_recipes(recipe, tmp_path):
    cfg = recipe.model
    model.check(tmp_path, cfg)
    model.put(tmp_path / "m", cfg, {"vae": model.new(cfg, "vae", 0)})
    model.check(tmp_path / "m", replace(cfg, vision=None, unet=replace(cfg.unet, widths=(16, 8)), latent_scale=3.0))
    other = replace(cfg, vae=replace(cfg.vae, widths=(8, 8, 8, 16)))
    with pytest.raises(MinisdError, match="the model's vae is not the recipe's") as error:
        model.check(tmp_path / "m", other)
    assert error.value.code == USAGE and "widths=(8, 8, 8, 16)" in error.value.why
    model.check(tmp_path / "m", other, replaced=("vae",))
