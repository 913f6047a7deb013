"""What the UNet is told on a walk: the prompts, what is not wanted, pictures beside the latents, and how strictly."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minisd.drawing.control import Guide, Shortcuts
from minisd.drawing.plan import Drawing
from minisd.fast.merging import Merging
from minisd.fast.reuse import Reusing
from minisd.models import Models
from minisd.samplers.denoiser import ConditionalDenoiser, Conditioning, Denoiser, Network, conditioned, denoiser
from minisd.samplers.guidance import Correction, by_step, guided, guided_twice, rescaled, scale_at, thresholded
from minisd.samplers.schedule import Schedule
from minisd.unet import UNet


def extra_channels(models: Models) -> int:
    """Input channels beside the latents: of an inpainting model a mask and a picture, of instruct-pix2pix a picture."""
    return models.cfg.unet.in_channels - models.cfg.vae.latent_channels


def denoiser_of(models: Models, drawings: Sequence[Drawing], schedule: Schedule, first: int,
                extra: Tensor | None) -> Denoiser:
    """The UNet told what the prompts and the negative one say in each step from `schedule[first]` on.

    Prompts drawn together take equally many windows at any time, so that none is longer for its neighbours.
    """
    before = [drawings[0].negative] if drawings[0].negative_counts else []
    prompts = [*before, *dict.fromkeys(one.prompt for one in drawings)]
    rows = [prompts.index(one.prompt, len(before)) for one in drawings]
    if extra is not None:
        extra = extra.to(models.dtype).expand(len(drawings), -1, -1, -1)
    told = models.tell(prompts, len(schedule) - 1 - first)
    predict = denoiser(shortened(models.unet, drawings[0].shortcuts), models.cfg.prediction)
    guide = partial(_told, models, predict, drawings[0], schedule)
    each = {id(said): guide(replace(said.rows(rows), concat=extra),
                            replace(said.rows([0] * len(rows)), concat=extra)) for said in told}
    return next(iter(each.values())) if len(each) == 1 else by_step([each[id(said)] for said in told], schedule, first)


def shortened(unet: UNet, shortcuts: Shortcuts) -> Network:
    """The UNet of one walk, with what it leaves out on the way."""
    network = Reusing(unet, shortcuts.reuse) if shortcuts.reuse > 1 else unet
    return Merging(network, unet, shortcuts.merge) if shortcuts.merge else network


def _told(models: Models, predict: ConditionalDenoiser, first: Drawing, schedule: Schedule, cond: Conditioning,
          negative: Conditioning) -> Denoiser:
    """The UNet told one thing, and where there is guidance, what is not wanted."""
    if not first.negative_counts:
        return conditioned(predict, cond)
    scale = scale_at(first.guidance, schedule, first.guide.ramp, first.guide.interval)
    corrections = _corrections(models, first.guide)
    if first.image_guidance is None or negative.concat is None:
        return guided(predict, cond, negative, scale, corrections)
    blank = replace(negative, concat=torch.zeros_like(negative.concat))
    return guided_twice(predict, cond, negative, blank, scale, first.image_guidance, corrections)


def _corrections(models: Models, guide: Guide) -> list[Correction]:
    """What a guided x0 passes through, in the order in which the papers' pipelines have it."""
    found = [rescaled(guide.rescale, models.cfg.prediction)] if guide.rescale else []
    return found if guide.threshold is None else [*found, thresholded(guide.threshold)]
