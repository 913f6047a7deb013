"""The whole evaluation of a model: its pictures drawn, its figures taken, and all that is needed to take them again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from tqdm import tqdm

from minisd import __version__
from minisd.devices import pick_device
from minisd.drawing.plan import Defaults, Drawing
from minisd.evaluate import exam, measures
from minisd.evaluate.clip_score import Judge, load_judge
from minisd.evaluate.figure import Figure
from minisd.evaluate.options import REPORT, Options
from minisd.evaluate.sheet import sheet
from minisd.files import put
from minisd.images import to_tensor
from minisd.pipeline import StableDiffusion
from minisd.png import png
from minisd.store import find, fingerprint, load, load_modules
from minisd.train.config import Recipe
from minisd.vae import VAE

FEATURES = "CLIP vision tower of the judge, projected, of unit length"
CONTACT, CONCEPTS = "contact.png", "concepts.png"
SHOWN = 400                                       # pictures on the sheet of concepts, at most


@dataclass(frozen=True)
class Report:
    """Figures, and the protocol that gives them again."""

    figures: tuple[Figure, ...]
    protocol: dict[str, Any]


def evaluate(options: Options, recipe: Recipe | None = None) -> Report:
    """Draw, measure, write two sheets of pictures and, last, the report."""
    folder, device = find(options.model), pick_device(options.device)
    judge = load_judge(find(options.judge or options.model), device)
    asked = exam.choose(options.data, styles_of(recipe), options.count)
    sd = load(folder, options.device, options.dtype)
    vae = cast(VAE, load_modules(folder, ("vae",), device)[1]["vae"])
    figures = measures.reconstruction(vae, exam.pixels(asked.unseen, sd.cfg.size))

    manner = manner_of(options, recipe, sd.defaults)
    drawings = [drawing(sd, manner, question.prompt, options.seed + n) for n, question in enumerate(asked.questions)]
    pictures = draw(sd, drawings, options.batch)
    drawn = measures.view(judge, asked, torch.stack([to_tensor(picture) for picture in pictures]))
    sheets = {CONCEPTS: sheet(pictures[:SHOWN], readings(asked, drawn)[:SHOWN], columns=16)}
    figures += beside_real(judge, asked, drawn, sd.cfg.size)

    if recipe is not None and recipe.preview.prompts:
        shown = [drawing(sd, manner, prompt, recipe.preview.seed) for prompt in recipe.preview.prompts]
        sheets[CONTACT] = sheet(draw(sd, shown, options.batch), recipe.preview.prompts, columns=8)
    protocol = {
        "minisd": __version__, "torch": torch.__version__, "model": sd.name, "model_sha256": fingerprint(folder),
        "judge": judge.name, "judge_sha256": judge.sha256, "features": FEATURES,
        "recipe": recipe.name if recipe else None, "drawing": asdict(replace(drawings[0], prompt="each concept's")),
        "last_seed": drawings[-1].seed, "batch": options.batch,
        "device": sd.device.type, "dtype": str(sd.dtype).removeprefix("torch."),
        "concepts": len(asked.questions), "unseen_combinations": sum(q.held_out for q in asked.questions),
        "questions_sha256": exam.fingerprint(row for q in asked.questions for row in (q.real, q.seen)),
        "held_out_sha256": exam.fingerprint(asked.unseen),
    }
    return written(Report(tuple(figures), protocol), sheets, options.out)


def beside_real(judge: Judge, asked: exam.Exam, drawn: measures.Judged, size: int) -> list[Figure]:
    """Fit to the words, and distance to held-out pictures; real pictures of the same concepts beside both."""
    real = measures.view(judge, asked, exam.pixels((question.real for question in asked.questions), size))
    trained = judge.pictures(exam.pixels((question.seen for question in asked.questions), size))
    held_out = judge.pictures(exam.pixels(asked.held_out, size))
    return [*measures.fit_to_words(drawn, real, torch.tensor([question.held_out for question in asked.questions])),
            *measures.distances(drawn.pictures, trained, held_out)]


def readings(asked: exam.Exam, drawn: measures.Judged) -> list[str]:
    """Each prompt, and behind it what the judge took the picture for, where that is something else."""
    return [question.prompt if best == n else f"{question.prompt} > {asked.captions[question.real.style][best]}"
            for n, (question, best) in enumerate(zip(asked.questions, drawn.best, strict=True))]


def styles_of(recipe: Recipe | None) -> tuple[str, ...]:
    """The styles that the denoiser has learnt last; none = all."""
    learnt = [stage.data.styles for stage in recipe.stages if stage.finetune is not None] if recipe else []
    return learnt[-1] if learnt else ()


def manner_of(options: Options, recipe: Recipe | None, defaults: Defaults) -> Defaults:
    """How to draw: as the options say, else the recipe's preview, else as the model likes best."""
    base = Defaults(recipe.preview.steps, recipe.preview.guidance, recipe.preview.sampler) if recipe else defaults
    return Defaults(base.steps if options.steps is None else options.steps,
                    base.guidance if options.cfg is None else options.cfg,
                    base.sampler if options.sampler is None else options.sampler)


def drawing(sd: StableDiffusion, manner: Defaults, prompt: str, seed: int) -> Drawing:
    return sd.drawing(prompt, "", manner.steps, manner.guidance, manner.sampler, seed)


def draw(sd: StableDiffusion, drawings: Sequence[Drawing], batch: int) -> list[Image.Image]:
    """All of them, in their order."""
    pictures: list[Image.Image] = []
    with tqdm(total=len(drawings), unit="picture") as bar:
        for group in sd.batches(drawings, batch):
            pictures += sd.draw(group)
            bar.update(len(group))
    return pictures


def written(report: Report, sheets: Mapping[str, Image.Image], folder: Path) -> Report:
    """The sheets, and last report.json, each whole or not at all."""
    for name, image in sheets.items():
        put(folder / name, png(image))
    put(folder / REPORT, json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n")
    return report
