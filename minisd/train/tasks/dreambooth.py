"""DreamBooth (Ruiz et al., arXiv 2208.12242): the whole UNet learns a subject, and the text encoder where asked."""

from functools import partial
from pathlib import Path

from minisd.pipeline import StableDiffusion
from minisd.train.tasks.gallery import save_whole
from minisd.train.tasks.tuned import Learnt, parts
from minisd.train.tuning import DreamBoothTask

MODEL = "model"                                   # folder that a whole model is taken home as


def learnt(sd: StableDiffusion, options: DreamBoothTask) -> Learnt:
    """Every parameter of the parts that have a rate."""
    rates = {"unet": 1.0, "text": options.text_rate}
    return Learnt({f"{part}.{name}": rates[part] for part, network in parts(sd).items() if rates[part]
                   for name, _ in network.named_parameters()}, partial(export, sd), MODEL, "--model")


def export(sd: StableDiffusion, folder: Path) -> None:
    """A whole model, as the one that it began from likes to be drawn with."""
    save_whole(folder / MODEL, sd)
