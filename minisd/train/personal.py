"""Stages that make a model one's own: the model they begin from, what learns, and the samples it learns from."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minisd import store
from minisd.devices import CPU
from minisd.errors import USAGE, MinisdError
from minisd.pipeline import StableDiffusion
from minisd.train.config import Recipe, Stage
from minisd.train.data import Batch, Pictures
from minisd.train.encoded import Encoded
from minisd.train.prior import ClassPictures
from minisd.train.tasks import custom_diffusion, dreambooth, lora, textual_inversion
from minisd.train.tasks.tuned import Learnt, Tuned

EMBEDDED = "emoji"                                # the model that programs take where none is named


@dataclass(frozen=True)
class Source:
    """Samples of the subject, each batch with class pictures beside it where prior preservation is asked for."""

    encoded: Encoded
    prior: ClassPictures | None

    def batch(self, numbers: list[int]) -> Batch:
        made = self.encoded.batch(numbers)
        if self.prior is not None:
            made.prior = self.prior.batch(numbers, self.encoded.words)
        return made


def begin(recipe: Recipe, stage: Stage, model: Path,
          device: torch.device = CPU) -> tuple[StableDiffusion, str]:
    """The model that a stage begins from, and its fingerprint: the recipe's base, or the model of its own stages."""
    path = store.find(recipe.base) if recipe.base else model
    if not path.exists():
        raise MinisdError("there is no model to begin from", str(path), f"stage {stage.name} makes one its user's own",
                          "name one as base, or run the stages before it", USAGE)
    sd = store.load(path, str(device), "float32")
    if len(sd.text) != 1:
        raise MinisdError(f"a model with {len(sd.text)} text encoders", str(path), "one is trained with",
                          "give a model with one", USAGE)
    step = sd.cfg.vae.factor * 2 ** (len(sd.cfg.unet.widths) - 1)
    if stage.data.size % step:
        raise MinisdError(f"stage {stage.name}: pictures of {stage.data.size} pixels", str(path),
                          f"this model's are multiples of {step}", "give data.size so", USAGE)
    return sd, store.fingerprint(path)


def tuned(recipe: Recipe, stage: Stage, sd: StableDiffusion, data: tuple[Pictures, Pictures],
          cache: Path) -> tuple[Tuned, Callable[[list[int]], Batch]]:
    """The task of a stage and the source of its batches. Class pictures are drawn first, by what has learnt nothing."""
    options = stage.tuning
    assert options is not None
    prior = None if options.prior is None else ClassPictures(sd, options.prior, recipe.seed, cache)
    learnt = method(recipe, stage, sd, data[0].rows)
    frozen = None if any(name.startswith("text.") for name in learnt.rates) else sd.text[0]
    encoded, held_out = (Encoded(source, sd.vae, frozen, cache) for source in data)
    task = Tuned(sd, options, learnt, encoded, held_out, recipe.preview, recipe.seed)
    return task, Source(encoded, prior).batch


def method(recipe: Recipe, stage: Stage, sd: StableDiffusion, rows: Sequence[object]) -> Learnt:
    """What the stage's table trains."""
    told = metadata(recipe, stage, sd, len(rows))
    low_rank = stage.lora or stage.dreambooth_lora
    if low_rank is not None:
        return lora.learnt(sd, low_rank, stage.name, recipe.seed, told)
    if stage.dreambooth is not None:
        return dreambooth.learnt(sd, stage.dreambooth)
    if stage.textual_inversion is not None:
        return textual_inversion.learnt(sd, stage.textual_inversion, told)
    return custom_diffusion.learnt(sd)


def metadata(recipe: Recipe, stage: Stage, sd: StableDiffusion, pictures: int) -> Mapping[str, str]:
    """What other programs show of a small file: kohya's `ss_*` and the ModelSpec, as far as it is known."""
    train, data, options = stage.train, stage.data, stage.tuning
    assert options is not None
    text_rate = stage.lora.text_rate if stage.lora else stage.dreambooth_lora.text_rate if stage.dreambooth_lora else 0
    told = {
        "ss_output_name": stage.name, "ss_sd_model_name": sd.name, "ss_seed": recipe.seed,
        "ss_base_model_version": "sd_v2" if sd.cfg.unet.linear_proj else "sd_v1",
        "ss_num_train_images": pictures, "ss_max_train_steps": train.steps,
        "ss_resolution": f"({data.size}, {data.size})",
        "ss_total_batch_size": train.batch * train.accumulate, "ss_gradient_accumulation_steps": train.accumulate,
        "ss_learning_rate": train.lr, "ss_unet_lr": train.lr, "ss_text_encoder_lr": train.lr * text_rate,
        "ss_lr_scheduler": train.schedule, "ss_lr_warmup_steps": train.warmup, "ss_optimizer": "AdamW",
        "ss_noise_offset": options.offset_noise or None, "ss_min_snr_gamma": options.min_snr,
        "ss_caption_dropout_rate": options.empty_captions, "ss_enable_bucket": data.buckets > 1,
        "ss_prior_loss_weight": options.prior.weight if options.prior else None,
        "modelspec.title": stage.name, "modelspec.resolution": f"{data.size}x{data.size}",
        "modelspec.prediction_type": sd.cfg.prediction, "modelspec.trigger_phrase": data.alias or None}
    return {key: str(value) for key, value in told.items() if value is not None}


def use(recipe: Recipe, stage: Stage, learnt: Learnt, folder: Path) -> str:
    """What was taken home into a stage's folder, and how to draw with it, as its user would type it."""
    said = [*stage.data.captions, *recipe.preview.prompts, stage.data.alias]
    if stage.textual_inversion is not None:
        said = [text for text in said if stage.textual_inversion.word in text]
    words = [next(filter(None, said), "..."), learnt.option, str(folder / learnt.file)]
    base = recipe.base or str(folder.parent / "model")
    if learnt.option != "--model" and base != EMBEDDED:
        words += ["--model", base]
    return f"done; draw with it by\n  python -m minisd.generate {shlex.join(words)}"


def memorising(rows: Sequence[Mapping[str, float]]) -> str | None:
    """A sentence on where memorising began, by the errors on held-out pictures and on those that are learnt."""
    measured = [row for row in rows if "held_out" in row]
    best = min(measured, key=lambda row: row["held_out"], default=None)
    if best is None or best is measured[-1] or measured[-1]["seen"] >= best["seen"]:
        return None
    last = measured[-1]
    return (f"memorising began at step {best['step']:g}: since then the error on held-out pictures has risen from "
            f"{best['held_out']:.4g} to {last['held_out']:.4g}, while that on the learnt ones fell from "
            f"{best['seen']:.4g} to {last['seen']:.4g}")
