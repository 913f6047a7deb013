"""What the UNet is told on a walk: the prompts, what is not wanted, pictures beside the latents, and how strictly."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minisd.control import Guide
from minisd.drawing import Drawing
from minisd.models import Models
from minisd.samplers.denoiser import Conditioning, Denoiser, conditioned, denoiser
from minisd.samplers.guidance import Correction, guided, guided_twice, rescaled, scale_at, thresholded
from minisd.samplers.schedule import Schedule


def extra_channels(models: Models) -> int:
    """Input channels beside the latents: of an inpainting model a mask and a picture, of instruct-pix2pix a picture."""
    return models.cfg.unet.in_channels - models.cfg.vae.latent_channels


def denoiser_of(models: Models, drawings: Sequence[Drawing], schedule: Schedule, extra: Tensor | None) -> Denoiser:
    """The UNet told of each prompt and, where there is guidance, of each negative prompt."""
    predict, first = denoiser(models.unet, models.cfg.prediction), drawings[0]
    before = [first.negative] if first.negative_counts else []          # read with each prompt, for equal lengths
    read = {prompt: models.encode([*before, prompt]) for prompt in dict.fromkeys(one.prompt for one in drawings)}
    each = [read[one.prompt] for one in drawings]
    if extra is not None:
        extra = extra.to(models.dtype).expand(len(drawings), -1, -1, -1)
    if not first.negative_counts:
        return conditioned(predict, _stack(each, 0, extra))
    cond, negative = _stack(each, 1, extra), _stack(each, 0, extra)
    scale = scale_at(first.guidance, schedule, first.guide.ramp, first.guide.interval)
    corrections = _corrections(models, first.guide)
    if first.image_guidance is None or extra is None:
        return guided(predict, cond, negative, scale, corrections)
    blank = replace(negative, concat=torch.zeros_like(extra))
    return guided_twice(predict, cond, negative, blank, scale, first.image_guidance, corrections)


def _corrections(models: Models, guide: Guide) -> list[Correction]:
    """What a guided x0 passes through, in the order in which the papers' pipelines have it."""
    found = [rescaled(guide.rescale, models.cfg.prediction)] if guide.rescale else []
    return found if guide.threshold is None else [*found, thresholded(guide.threshold)]


def _stack(each: Sequence[Conditioning], row: int, extra: Tensor | None) -> Conditioning:
    """One row of each condition, as a batch."""
    labels = [one.label[row:row + 1] for one in each if one.label is not None]
    return Conditioning(torch.cat([one.context[row:row + 1] for one in each]), torch.cat(labels) if labels else None,
                        extra)
