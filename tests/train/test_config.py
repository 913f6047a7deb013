"""Recipes: what is refused, in which words, and that a resolved one can be given back."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from minisd.errors import USAGE, MinisdError
from minisd.schema import read, read_file
from minisd.train.config import Recipe

RECIPES = Path(__file__).parents[2] / "minisd" / "recipes"


def refused(recipe, **changes):
    """The error of the recipe's first stage with other entries, as if they stood in a file."""
    data = asdict(recipe)
    data["stages"] = list(data["stages"])
    for name, value in changes.items():
        table = data["stages"][0] if name in data["stages"][0] else data
        table[name] = table[name] | value if isinstance(value, dict) and table[name] else value
    with pytest.raises(MinisdError) as error:
        read(Recipe, data, "recipe.toml")
    assert error.value.code == USAGE and error.value.where == "recipe.toml"
    return error.value.why


@pytest.mark.parametrize("changes, words", [
    ({"train": {"steps": 0}}, "steps = 0: give at least 1"),
    ({"train": {"save_every": 0}}, "save_every = 0: give at least 1"),
    ({"train": {"batch": -4}}, "batch = -4"),
    ({"train": {"keep": 0}}, "keep = 0"),
    ({"train": {"lr": float("nan")}}, "lr = nan"),
    ({"train": {"ema": 1.5}}, "ema = 1.5: give 0 to 1"),
    ({"train": {"schedule": "cosin"}}, "cosin"),
    ({"train": {"step": 3}}, "unknown entry step (did you mean steps?)"),
    ({"train": {"shard": True}}, "stage vae: only minisd.distill runs on several ranks; leave shard out"),
    ({"data": {"crop": 128}}, "crop = 128: give 0 to 64"),
    ({"data": {"size": 60, "crop": 0}}, "stage vae: pictures of 60 pixels, but a latent is 8 pixels wide"),
    ({"data": {"crop": 8}}, "its critics look at 16 or more"),
    ({"data": {"size": "64"}}, "'64' is not a int"),
    ({"vae": {"kl": -1.0}}, "kl = -1.0"),
    ({"vae": None}, "exactly one of the tables vae, clip, finetune"),
    ({"clip": {}}, "exactly one of the tables vae, clip, finetune"),
    ({"name": "../x"}, "a name has letters"),
    ({"name": "model"}, "is not model or cache"),
    ({"name": "clip"}, "each with a name of its own"),
    ({"preview": {"steps": 0}}, "--steps 0 is out of range"),
    ({"preview": {"sampler": "eular"}}, "eular"),
    ({"seed": -1}, "seed = -1"),
    ({"stages": []}, "at least one"),
])
def test_what_is_wrong_is_said_before_anything_is_built(recipe, changes, words):
    assert words in refused(recipe, **changes)


def test_sizes_must_fit_the_networks(recipe):
    stages = [asdict(stage) for stage in recipe.stages]
    stages[1]["data"]["size"] = 72
    assert "the vision tower's are of 64" in refused(recipe, stages=stages)
    stages[1]["data"]["size"], stages[2]["data"]["crop"] = 64, 32
    assert "leave crop out" in refused(recipe, stages=stages)
    model = asdict(replace(recipe.model, vision=None))
    assert "no vision tower" in refused(recipe, model=model)


def test_a_resolved_recipe_reads_as_the_same(recipe, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(asdict(recipe)))
    assert read_file(Recipe, path) == recipe


def test_the_embedded_models_recipe_is_valid():
    assert read_file(Recipe, RECIPES / "emoji.toml").name == "emoji"
