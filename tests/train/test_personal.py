"""Making a model one's own, every method in miniature: what moves and what cannot, killed and resumed to the bit, and
what is taken home used again."""

import io
import os
import shlex
import signal
from contextlib import redirect_stdout
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch
from PIL import Image

from minisd import store
from minisd.adapters import add_lora
from minisd.errors import BAD_FILE, USAGE, MinisdError
from minisd.generate.__main__ import main as generate
from minisd.schema import read
from minisd.train import loop, personal, stages, state
from minisd.train.config import Preview, Recipe
from minisd.train.draws import Draws
from minisd.train.imagined import Imagined
from minisd.train.report import read_metrics
from minisd.train.stages import train
from minisd.train.tasks import tuned
from minisd.words import add_embedding
from tests import tiny_model
from weights_convert.read import read_file

TRAIN = {"steps": 4, "batch": 2, "lr": 1e-2, "warmup": 0, "save_every": 2, "preview_every": 3, "log_every": 3,
         "dtype": "fp32", "ema": 0.5}
DATA = {"size": 64, "styles": ["round"], "alias": "sks", "flip": True}
PRIOR = {"prompt": "a disc", "count": 3, "weight": 0.5}
TABLES = {
    "lora": {"rank": 2, "targets": ["attention", "feed-forward", "conv"], "text_rate": 0.2},
    "dreambooth": {"text_rate": 0.1, "prior": PRIOR},
    "dreambooth_lora": {"rank": 2, "text_rate": 0.0, "prior": PRIOR},
    "textual_inversion": {"word": "<sks>", "vectors": 2, "start": "a disc"},
    "custom_diffusion": {"prior": PRIOR},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model.folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def recipe(base):
    """One stage for each method."""
    made = [{"name": name, "train": TRAIN, "data": DATA | ({"alias": "<sks>"} if "inversion" in name else {}),
             name: table} for name, table in TABLES.items()]
    return read(Recipe, {"name": "tiny", "seed": 3, "base": str(base), "stages": made}, "test")


@pytest.fixture(scope="module", autouse=True)
def few():
    """Samples that are measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "MEASURED", 8)
        yield


@pytest.fixture(scope="module")
def trained(recipe, pictures, tmp_path_factory):
    """The folder of a run of all stages, and in it what the run has told."""
    out = tmp_path_factory.mktemp("personal")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as told:
        patch.setattr(os, "fsync", lambda _: None)
        train(recipe, tuple(TABLES), pictures, out, "auto")
    (out / "told.txt").write_text(told.getvalue(), encoding="utf-8")
    return out


def files(out):
    found = sorted(path for pattern in ("*.safetensors", "*.jsonl", "config.json") for path in out.rglob(pattern))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found if "cache" not in path.parts}


def rows(out, stage):
    return read_metrics(out / stage / "metrics.jsonl")


# --- runs ---


@pytest.mark.parametrize("name", TABLES)
def test_four_steps_are_two_a_kill_and_two_to_the_bit(recipe, pictures, trained, child, tmp_path, name, monkeypatch):
    """Weights, average, optimiser, log, and what is taken home."""
    commit = state.commit

    def dying(run, current, *rest):
        commit(run, current, *rest)
        if current.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(state, "commit", dying)
        assert child(lambda: train(recipe, [name], pictures, tmp_path, "auto")) == -signal.SIGKILL
    assert child(lambda: train(recipe, [name], pictures, tmp_path, "latest")) == 0
    expected, found = files(trained / name), files(tmp_path / name)
    assert expected.keys() == found.keys() and len(expected) >= 8
    assert [path for path in expected if expected[path] != found[path]] == []


@pytest.mark.parametrize("name", TABLES)
def test_losses_are_logged_apart_and_measured_from_the_beginning(trained, name):
    measured = [row for row in rows(trained, name) if "held_out" in row]
    logged = [row for row in rows(trained, name) if "denoise" in row]
    assert [row["step"] for row in measured] == [0, 3, 4] and [row["step"] for row in logged] == [3, 4]
    assert measured[0]["held_out"] != measured[0]["seen"]
    assert all(("prior" in row) == ("prior" in TABLES[name]) for row in logged)
    assert measured[-1]["seen"] != measured[0]["seen"]


MOVED = {
    "lora": {"unet": "*.lora.*", "text": "*.lora.*"}, "dreambooth": {"unet": "*", "text": "*"},
    "dreambooth_lora": {"unet": "*_attn.*.lora.*", "text": ""},
    "textual_inversion": {"unet": "", "text": "token.extra"},
    "custom_diffusion": {"unet": "*.cross_attn.[kv].weight", "text": ""},
}


@pytest.mark.parametrize("name", TABLES)
def test_what_is_not_learnt_keeps_its_bits(recipe, pictures, base, tmp_path, name):
    """In memory after training, each parameter beside the base's of its name."""
    stage, before = recipe.stage(name), store.load(base, "cpu", "float32")
    sd, _ = personal.begin(recipe, stage, tmp_path)
    task, batches = personal.tuned(recipe, stage, sd, stages.sources(recipe, stage, pictures), tmp_path)
    loop.fit(loop.Run(tmp_path / "x", task, batches, stage.train, 3,
                      state.State.new(task.trained(), stage.train, task.learnt.rates)))
    for part, old in {"unet": before.unet, "text": before.text[0], "vae": before.vae}.items():
        now = dict((sd.vae if part == "vae" else task.modules[part]).named_parameters())
        known = dict(old.named_parameters())
        for path, p in now.items():
            if path in known and not fnmatchcase(path, MOVED[name].get(part, "")):
                assert torch.equal(p, known[path]), f"{part}.{path} has moved"
        learnt = [path for path in now if fnmatchcase(path, MOVED[name].get(part, ""))]
        assert bool(learnt) == bool(MOVED[name].get(part)), part
        assert all(p.requires_grad == (path in learnt) for path, p in now.items())
        assert all(not torch.equal(now[path], known[path]) for path in learnt if path in known and "norm" not in path)


def test_the_text_encoder_learns_at_its_own_rate(recipe, pictures, tmp_path):
    stage = recipe.stage("lora")
    sd, _ = personal.begin(recipe, stage, tmp_path)
    task, batches = personal.tuned(recipe, stage, sd, stages.sources(recipe, stage, pictures), tmp_path)
    current = state.State.new(task.trained(), stage.train, task.learnt.rates)
    run = loop.Run(tmp_path, task, batches, stage.train, 3, current)
    with loop.reading_thread() as reader:
        loop.update(run, loop.prefetched(run, reader))
    rates = {name: group["lr"] for group in current.optimizer.param_groups for name, p in current.params.items()
             if any(p is member for member in group["params"])}
    assert {rate for name, rate in rates.items() if name.startswith("unet.")} == {1e-2}
    assert {rate for name, rate in rates.items() if name.startswith("text.")} == {0.2 * 1e-2}


def test_a_memory_that_is_full_says_when_it_began():
    told = [{"step": s, "held_out": h, "seen": k} for s, h, k in ((0, .5, .5), (2, .4, .3), (4, .45, .2))]
    assert personal.memorising([{"step": 1, "denoise": 1.0}, *told]) == (
        "memorising began at step 2: since then the error on held-out pictures has risen from 0.4 to 0.45, while that "
        "on the learnt ones fell from 0.3 to 0.2")
    assert personal.memorising(told[:2]) is None and personal.memorising([]) is None


def test_broken_pictures_masks_and_sizes_of_several_shapes(recipe, tmp_path):
    """The core's ways with data are every method's: one picture is broken, one wide, one has a mask."""
    data = tmp_path / "data"
    data.mkdir()
    for name, size in (("a", (240, 64)), ("b", (90, 90)), ("c", (90, 90))):
        Image.new("RGB", size, "red").save(data / f"{name}.png")
    (data / "broken.png").write_bytes(b"no picture")
    mask = Image.new("L", (90, 90))
    mask.paste(255, (0, 0, 45, 90))
    mask.save(data / "c.mask.png")
    stage = recipe.stage("dreambooth_lora")
    stage = replace(stage, data=replace(stage.data, size=128, buckets=4.0, styles=(), masks=True))
    sd, _ = personal.begin(recipe, stage, tmp_path)
    task, batches = personal.tuned(recipe, stage, sd, stages.sources(recipe, stage, data), tmp_path)
    several = [batches([2 * n, 2 * n + 1]) for n in range(6)]
    assert {tuple(batch.latents.mean.shape[2:]) for batch in several} == {(16, 16), (8, 32)}
    assert {row.path.name for batch in several for row in batch.rows} == {"a.png", "b.png", "c.png"}
    assert all(batch.mask.shape[2:] == batch.latents.mean.shape[2:] for batch in several)
    assert min(batch.mask.mean().item() for batch in several) < 0.9
    terms = [task.loss(batch, Draws(3, [0, 1]), 0) for batch in several]
    assert all(term.keys() == {"denoise", "prior"} and all(v.isfinite() for v in term.values()) for term in terms)


# --- what is taken home ---


def picture(sd, prompt):
    return sd.txt2img(prompt, steps=2, size=(64, 64))[0].tobytes()


def test_a_lora_is_a_file_that_changes_pictures_and_says_how_it_was_made(trained, base):
    sd, path = store.load(base, "cpu", "float32"), trained / "lora" / "lora.safetensors"
    before = picture(sd, "sks, a red disc")
    add_lora(sd, path)
    assert picture(sd, "sks, a red disc") != before
    told = read_file(path).metadata
    assert told["ss_network_dim"] == "2" and told["ss_text_encoder_lr"] == "0.002" and told["ss_seed"] == "3"
    assert told["modelspec.title"] == "lora" and told["modelspec.trigger_phrase"] == "sks"
    assert told["modelspec.prediction_type"] == "v" and "ss_min_snr_gamma" not in told


def test_the_average_is_taken_home(trained):
    found = read_file(trained / "lora" / "lora.safetensors").tensors
    ema = read_file(trained / "lora" / "checkpoint-4" / "ema.safetensors").tensors
    one = next(name for name in ema if name.endswith("cross_attn.q.lora.lora.down"))
    assert any(torch.equal(ema[one], tensor) for tensor in found.values())


def test_a_word_is_a_file_that_gives_the_prompt_a_meaning(trained, base):
    sd, path = store.load(base, "cpu", "float32"), trained / "textual_inversion" / "sks.safetensors"
    before = picture(sd, "a red <sks>"), picture(sd, "a red disc")
    assert add_embedding(sd, path) == "<sks>"
    assert picture(sd, "a red <sks>") != before[0] and picture(sd, "a red disc") == before[1]
    assert list(read_file(path).tensors) == ["<sks>"] and read_file(path).tensors["<sks>"].shape == (2, 32)


@pytest.mark.parametrize("name", TABLES)
def test_the_command_that_is_told_at_the_end_draws(trained, tmp_path, name):
    lines = (trained / "told.txt").read_text().splitlines()
    program, *words = shlex.split(lines[lines.index(f"{name}: done; draw with it by") + 1])[2:]
    assert program == "minisd.generate" and words[0] == ("<sks>" if "inversion" in name else "sks")
    assert generate([*words, "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "drawn")]) == 0


@pytest.mark.parametrize("file", ["lora/lora.safetensors", "textual_inversion/sks.safetensors", "told.txt"])
def test_a_base_that_is_no_model(recipe, trained, pictures, tmp_path, file):
    with pytest.raises(MinisdError) as error:
        train(replace(recipe, base=str(trained / file)), ["lora"], pictures, tmp_path, "auto")
    assert error.value.code == BAD_FILE


@pytest.mark.parametrize("name", ["dreambooth", "custom_diffusion"])
def test_a_whole_model_is_taken_home(trained, base, name):
    made, before = (store.load(folder, "cpu", "float32") for folder in (trained / name / "model", base))
    assert made.cfg == before.cfg and picture(made, "sks, a disc") != picture(before, "sks, a disc")
    assert all(torch.equal(a, b) for a, b in zip(made.vae.parameters(), before.vae.parameters(), strict=True))


# --- class pictures ---


def test_class_pictures_are_drawn_once_and_before_anything_is_learnt(recipe, pictures, base, tmp_path, monkeypatch):
    stage, drawn = recipe.stage("dreambooth_lora"), []

    def counted(self, group, inner=Imagined.draw):
        drawn.extend((self.captions[place], self.seed_of(place)) for place in group)
        return inner(self, group)

    monkeypatch.setattr(Imagined, "draw", counted)
    made = []
    for _ in range(2):
        sd, _ = personal.begin(recipe, stage, tmp_path)
        task, batches = personal.tuned(recipe, stage, sd, stages.sources(recipe, stage, pictures), tmp_path)
        made.append(batches([0, 1, 2, 3]))
    assert sorted(drawn) == [("a disc", 3 + n) for n in range(3)]
    first, again = (batch.prior.latents.mean for batch in made)
    assert torch.equal(first, again) and torch.equal(first[0], first[3]) and not torch.equal(first[0], first[1])
    assert made[0].prior.captions == ["a disc"] * 4
    torch.testing.assert_close(made[0].prior.states.hidden[2], task.data.words("a disc").hidden, rtol=0, atol=0)


# --- refused ---


@pytest.mark.parametrize("table, entries, said", [
    ("dreambooth_lora", {"rank": 2}, "dreambooth_lora has no prior"), ("lora", {"rank": 0}, "rank = 0"),
    ("lora", {"text_rate": -1.0}, "text_rate = -1"), ("lora", {"targets": [], "text_rate": 0.0}, "nothing to train"),
    ("lora", {"prior": {"prompt": "x", "count": 0}}, "prior.count = 0"),
    ("textual_inversion", {"word": "<other>"}, "no caption says <other>"),
    ("textual_inversion", {"vectors": 0}, "vectors = 0"),
])
def test_what_a_recipe_cannot_mean(base, table, entries, said):
    stage = {"name": "x", "data": {"alias": "<new>"}, table: entries}
    with pytest.raises(MinisdError) as error:
        read(Recipe, {"name": "tiny", "base": str(base), "stages": [stage]}, "test")
    assert error.value.code == USAGE and said in error.value.why


def test_what_does_not_fit_the_model(recipe, base, pictures, tmp_path):
    def failure(name, **changes):
        stage = replace(recipe.stage(name), **changes)
        with pytest.raises(MinisdError) as error:
            train(replace(recipe, stages=(stage,)), [name], pictures, tmp_path / name, "auto")
        assert error.value.code == USAGE
        return str(error.value)

    data = recipe.stage("lora").data
    assert "multiples of 16" in failure("lora", data=replace(data, size=40))
    assert "no module matches up.9" in failure("lora", lora=replace(recipe.stage("lora").lora, targets=("up.9",)))
    with pytest.raises(MinisdError, match="no model to begin from"):
        train(replace(recipe, base=""), ["lora"], pictures, tmp_path / "none", "auto")


def test_the_sheet_is_drawn_and_training_goes_on(recipe, pictures, trained, tmp_path):
    """Drawing lays the networks out anew; the steps that follow must not notice."""
    shown = replace(recipe, preview=Preview(("sks, a disc",), 2))
    train(shown, ["dreambooth_lora"], pictures, tmp_path, "auto")
    assert len(list((tmp_path / "dreambooth_lora" / "samples").glob("*.png"))) == 3
    name = "dreambooth_lora/checkpoint-4/params.safetensors"
    assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()
    assert (tmp_path / "dreambooth_lora" / "report.html").is_file()
