"""A subject, a style and a repair learnt by the embedded model: `python benchmarks/personal.py DATA` runs it all again.

DATA is the folder of pictures that `minisd.recipes.emoji_data` makes. Training goes on where it was stopped; grids and
figures are written to `results/personal-*`. Pictures are compared by our own CLIP (`minisd.evaluate.clip_score`).
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import personal_data
import torch
from PIL import Image, ImageFilter
from torch import Tensor

import minisd
from minisd.adapters import add_lora
from minisd.evaluate.clip_score import Judge, load_judge
from minisd.images import grid, to_tensor
from minisd.labels import table
from minisd.pipeline import StableDiffusion
from minisd.schema import read_file
from minisd.store import find
from minisd.train.config import Recipe
from minisd.train.report import read_metrics
from minisd.train.stages import train
from minisd.words import add_embedding
from weights_convert.lora.algebra import combined
from weights_convert.lora.read import read_adapter
from weights_convert.lora.write import write_adapter

HERE = Path(__file__).parent
RECIPES, RESULTS = HERE.parent / "minisd" / "recipes", HERE / "results"
# What no run has to do with: drift is how far their pictures go away.
NEUTRAL = tuple(f"{thing}, {style}" for thing in ("a red apple", "a dog face", "a rocket", "a pizza", "an umbrella",
                                                  "a butterfly") for style in ("3d", "flat"))
NAMES = ("a red apple", "a dog face", "a rocket", "a guitar", "a cactus", "a butterfly", "a pizza", "an octopus",
         "a hamburger", "an umbrella", "a snowman", "a sunflower")
THINGS = tuple(f"{name}, {('3d', 'flat')[n % 2]}" for n, name in enumerate(NAMES))
CONCEPTS = tuple(name.split(" ", 1)[1] for name in NAMES)     # which the style and the flaw are learnt without
SEEDS = 2
Draw = Callable[[StableDiffusion], None]


class Place(NamedTuple):
    """The pictures, the runs, and where results go."""

    data: Path
    runs: Path
    judge: Judge
    results: Path


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of pictures with metadata.jsonl")
    parser.add_argument("--only", nargs="*", choices=EXPERIMENTS, help="experiments to run (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs/personal"), help="run folders (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where grids go (default: %(default)s)")
    options = parser.parse_args(args)
    place = Place(options.data, options.runs, load_judge(find("emoji")), options.results)
    path = options.results / "personal.json"
    for name in options.only or EXPERIMENTS:
        figures = EXPERIMENTS[name](place)
        found = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(found | {name: figures}, indent=1) + "\n")
        print(name, json.dumps(figures, indent=1), sep="\n")
    return 0


# ---------------------------------------------------------------- training and drawing
def trained(place: Place, recipe: str, data: Path, base: str = "", name: str = "") -> Path:
    """The folder of a recipe's run, after it; it is called like the recipe, or otherwise."""
    made, folder = read_file(Recipe, RECIPES / f"{recipe}.toml"), place.runs / (name or recipe)
    made = replace(made, base=base or made.base)
    train(made, [stage.name for stage in made.stages], data, folder, "auto")
    return folder


def learnt(folder: Path) -> dict[str, Any]:
    """What a stage's log says: steps, and both errors at the beginning, at the end, and where held out was least."""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "held_out" in row]
    least = min(rows, key=lambda row: row["held_out"])
    return {"steps": rows[-1]["step"], "least_held_out_at": least["step"],
            **{f"{name}_{when}": row[name] for when, row in (("before", rows[0]), ("after", rows[-1]))
               for name in ("held_out", "seen")}}


def loaded(model: str | Path) -> StableDiffusion:
    return minisd.load(model, device="cpu", dtype="bfloat16")


def emoji() -> StableDiffusion:
    return loaded("emoji")


def draw(sd: StableDiffusion, prompts: Sequence[str], count: int = 1, sampler: str | None = None) -> list[Image.Image]:
    """Prompt after prompt, each from the same seeds."""
    return sd.txt2img(list(prompts), count=count, sampler=sampler, batch=8)


def save(place: Place, name: str, sheet: Image.Image) -> None:
    """In 256 colours, which is a third of the bytes."""
    sheet.quantize(256).save(place.results / f"personal-{name}.png", optimize=True)


def seen(judge: Judge, pictures: Sequence[Image.Image]) -> Tensor:
    """Unit vectors of pictures."""
    return judge.pictures(torch.stack([to_tensor(picture) for picture in pictures]))


def alike(a: Tensor, b: Tensor) -> float:
    """Mean cosine of all pairs."""
    return round((a @ b.T).mean().item(), 4)


def drift(place: Place, sd: StableDiffusion, before: Sequence[Image.Image]) -> float:
    """1 - the mean cosine of neutral prompts' pictures with those of the model before, from the same noise."""
    now, then = seen(place.judge, draw(sd, NEUTRAL)), seen(place.judge, before)
    return round(1 - (now * then).sum(dim=1).mean().item(), 4)


def other_seeds(place: Place, before: Sequence[Image.Image]) -> float:
    """The same figure between pictures of other seeds: how large drift is where nothing was kept but the words."""
    others = draw(emoji(), NEUTRAL, count=2)[1::2]
    return round(1 - (seen(place.judge, others) * seen(place.judge, before)).sum(dim=1).mean().item(), 4)


def real(folder: Path, split: str) -> list[Image.Image]:
    found = []
    for row in personal_data.rows_of(folder):
        if row["split"] == split:
            with Image.open(folder / row["file"]) as image:
                found.append(image.convert("RGB"))
    return found


# ---------------------------------------------------------------- a subject
SUBJECT_PROMPTS = ("a {} monster, 3d", "a {} monster, flat", "a green {} monster, 3d", "a small {} monster")


def subject(place: Place) -> dict[str, Any]:
    """Five pictures of a creature, three methods: likeness to held-out pictures of it, to the words, and drift."""
    data = personal_data.subject(place.runs / "subject-data")
    run = trained(place, "subject", data)
    models = subject_models(run)
    shown, unseen = seen(place.judge, real(data, "train")), seen(place.judge, real(data, "holdout"))
    before = draw(emoji(), NEUTRAL)
    rows, figures = [], dict[str, Any]()
    for name, (sd, word) in models.items():
        prompts = [prompt.format(word).replace("  ", " ") for prompt in SUBJECT_PROMPTS]
        pictures = draw(sd, prompts, SEEDS)
        rows.append([*pictures[::SEEDS], pictures[1], *draw(sd, ["a monster, 3d", "a red apple, 3d"])])
        each = seen(place.judge, pictures).split(SEEDS)
        styles = place.judge.captions(["a monster, 3d", "a monster, flat"])
        figures[name] = {
            "likeness": alike(each[0], unseen), "likeness, all prompts": alike(torch.cat(each), unseen),
            "flat rather than 3d, asked for flat": round(((each[1] @ styles.T).diff(dim=1)).mean().item(), 4),
            "drift": drift(place, sd, before), **(learnt(run / name) if name in ("lora", "dreambooth") else {}),
            **(learnt(run / "textual-inversion") if name == "textual inversion" else {})}
    figures["bars"] = {"likeness of the real pictures": alike(shown, unseen), "drift, other seeds":
                       other_seeds(place, before)}
    heads = [prompt.format("zib") for prompt in SUBJECT_PROMPTS] + ["another seed of the first", "a monster, 3d",
                                                                    "a red apple, 3d"]
    rows.insert(0, [*real(data, "train"), *real(data, "holdout")[:2]])
    save(place, "subject", table(rows, heads, ["learnt from (5) and held out", *models]))
    return figures


def subject_models(run: Path) -> dict[str, tuple[StableDiffusion, str]]:
    """The model before, and by each method, with the word by which the creature is called."""
    lora, inversion = emoji(), emoji()
    add_lora(lora, run / "lora" / "lora.safetensors")
    word = add_embedding(inversion, run / "textual-inversion" / "zib.safetensors")
    dreambooth = loaded(run / "dreambooth" / "model")
    return {"before": (emoji(), "zib"), "lora": (lora, "zib"), "dreambooth": (dreambooth, "zib"),
            "textual inversion": (inversion, word)}


# ---------------------------------------------------------------- a style
STRENGTHS = (0.0, 0.5, 1.0)
STYLES = ("3d", "flat", "ink")


def style(place: Place) -> dict[str, Any]:
    """200 pictures in blue ink, at three strengths and with the creature's LoRA beside it."""
    data = personal_data.style(place.data, place.runs / "style-data", 200, CONCEPTS)
    run = trained(place, "style", data)
    centres = style_centres(place)
    before = draw(emoji(), NEUTRAL)
    figures: dict[str, Any] = {"of real pictures": {name: shares(place, centres, real_style(place, name, 2))
                                                    for name in STYLES}, **learnt(run / "style")}
    rows = []
    for strength in STRENGTHS:
        sd = emoji()
        add_lora(sd, run / "style" / "style.safetensors", strength)
        pictures = draw(sd, THINGS, SEEDS)
        words = place.judge.captions([thing for thing in THINGS for _ in range(SEEDS)])
        figures[f"strength {strength:g}"] = {
            "nearest style": shares(place, centres, pictures), "drift": drift(place, sd, before),
            "cosine with the words": round((seen(place.judge, pictures) * words).sum(dim=1).mean().item(), 4)}
        rows.append([*pictures[:6 * SEEDS:SEEDS], *with_subject(place, run, strength)])
    heads = [*THINGS[:6], "a zib monster, 3d: with the subject's LoRA", "a zib monster, flat: with it"]
    save(place, "style", table(rows, heads, [f"style {strength:g}" for strength in STRENGTHS]))
    return figures


def with_subject(place: Place, run: Path, strength: float) -> list[Image.Image]:
    sd = emoji()
    add_lora(sd, place.runs / "subject" / "lora" / "lora.safetensors")
    add_lora(sd, run / "style" / "style.safetensors", strength)
    return draw(sd, ["a zib monster, 3d", "a zib monster, flat"])


def real_style(place: Place, name: str, seed: int, count: int = 100) -> list[Image.Image]:
    """Real pictures of a style: those of seed 1 make its centre, those of seed 2 test it."""
    rows = personal_data.chosen(place.data, "3d" if name == "ink" else name, 2 * count, 5)
    pictures = [personal_data.opened(place.data, row) for row in rows[seed - 1::2]]
    return [personal_data.inked(picture) for picture in pictures] if name == "ink" else pictures


def style_centres(place: Place) -> Tensor:
    """The mean of each style's pictures: [styles, d]."""
    means = [seen(place.judge, real_style(place, name, 1)).mean(dim=0) for name in STYLES]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)


def shares(place: Place, centres: Tensor, pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Of how many pictures each style is the nearest."""
    nearest = (seen(place.judge, pictures) @ centres.T).argmax(dim=1)
    return {name: round((nearest == n).float().mean().item(), 3) for n, name in enumerate(STYLES)}


# ---------------------------------------------------------------- a repair
FLAW, MORE = 25.0, 50.0                           # strength of the grain that the model has, and of rougher pictures
SAMPLERS = ("dpm++2m karras", "euler a")
WEIGHTS = (1.0, -0.5, -1.0)


def repair(place: Place) -> dict[str, Any]:
    """A model that draws rough pictures; what LoRAs learn of it, alone and as a difference; and both negated.

    How near a repair comes is measured beside a model that was trained alike on the same pictures without the flaw:
    the pictures of the model before differ by all that training changed.
    """
    data = personal_data.rough(place.data, place.runs / "flaw-data", {"flawed": FLAW}, 200, 0, CONCEPTS)
    clean = personal_data.rough(place.data, place.runs / "clean-data", {"clean": 0.0}, 200, 0, CONCEPTS)
    flawed, control = trained(place, "flaw", data), trained(place, "flaw", clean, name="control")
    model = flawed / "flawed" / "model"
    pairs = personal_data.rough(place.data, place.runs / "pairs-data", {"less": FLAW, "more": MORE}, 200, 7, CONCEPTS)
    run = trained(place, "differential", pairs, str(model))
    files = {"more": run / "more" / "more.safetensors", "difference": run / "difference.safetensors"}
    files["difference"].unlink(missing_ok=True)
    less = run / "less" / "less.safetensors"
    write_adapter(combined([read_adapter(files["more"]), read_adapter(less)], [1.0, -1.0]), files["difference"])
    figures: dict[str, Any] = {"flawed": learnt(flawed / "flawed"), "control": learnt(control / "flawed"),
                               **{name: learnt(run / name) for name in ("more", "less")}}
    rows = []
    for sampler in SAMPLERS:
        found, row = repaired(place, sampler, model, control / "flawed" / "model", files)
        figures |= {f"{sampler}, {name}": figure for name, figure in found.items()}
        rows.append(row)
    adapted = [f"{name} at {weight:g}" for name in files for weight in WEIGHTS]
    save(place, "repair", table(rows, ["before", "trained without the flaw", "flawed", *adapted], SAMPLERS))
    return figures | {f"what never had the flaw, {name} at -1": on_the_clean(place, file)
                      for name, file in files.items()}


def repaired(place: Place, sampler: str, model: Path, control: Path,
             files: Mapping[str, Path]) -> tuple[dict[str, Any], list[Image.Image]]:
    """Figures and pictures of one sampler: of the models without a LoRA, and of each LoRA at its weights."""
    wanted = draw(loaded(control), NEUTRAL, 1, sampler)
    drawn = {"before the flaw": draw(emoji(), NEUTRAL, 1, sampler), "control": wanted,
             "flawed": draw(loaded(model), NEUTRAL, 1, sampler)}
    for name, file in files.items():
        for weight in WEIGHTS:
            sd = loaded(model)
            add_lora(sd, file, weight)
            drawn[f"{name} at {weight:g}"] = draw(sd, NEUTRAL, 1, sampler)
    near, figures = seen(place.judge, wanted), {}
    for name, pictures in drawn.items():
        likeness = (seen(place.judge, pictures) * near).sum(dim=1).mean().item()
        figures[name] = {"roughness": roughness(pictures), "distance from the control": distance(pictures, wanted),
                         "likeness to the control": round(likeness, 4),
                         "distance from before the flaw": distance(pictures, drawn["before the flaw"])}
    return figures, [strip(pictures) for pictures in drawn.values()]


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Four neutral prompts, two by two."""
    return grid(list(pictures[:4]), columns=2)


def distance(pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Root mean square difference of the pixels, 0 to 255."""
    a, b = (np.stack([np.asarray(one, dtype=np.float32) for one in each]) for each in (pictures, others))
    return round(float(np.sqrt(np.mean((a - b) ** 2))), 2)


def on_the_clean(place: Place, file: Path) -> dict[str, float]:
    """What the repair does where there is nothing to repair."""
    sd, before = emoji(), draw(emoji(), NEUTRAL)
    add_lora(sd, file, -1)
    return {"drift": drift(place, sd, before), "roughness": roughness(draw(sd, NEUTRAL)),
            "roughness before": roughness(before), "drift, other seeds": other_seeds(place, before)}


def roughness(pictures: Sequence[Image.Image]) -> float:
    """Mean size of the Laplacian of the luminance, 0 to 255."""
    kernel = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)
    edges = [np.asarray(picture.convert("L").filter(kernel), dtype=np.float32) - 128 for picture in pictures]
    return round(float(np.mean([np.abs(one[1:-1, 1:-1]).mean() for one in edges])), 3)


EXPERIMENTS: Mapping[str, Callable[[Place], dict[str, Any]]] = {"subject": subject, "style": style, "repair": repair}

if __name__ == "__main__":
    sys.exit(main())
