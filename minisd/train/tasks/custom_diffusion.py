"""Custom Diffusion (Kumari et al., arXiv 2212.04488, section 3.2): keys and values of the UNet's cross-attentions are
what changes most when a model is tuned, and all that learns here."""

from fnmatch import fnmatchcase
from functools import partial

from minisd.pipeline import StableDiffusion
from minisd.train.tasks.dreambooth import MODEL, export
from minisd.train.tasks.tuned import Learnt

TRAINED = ("*.cross_attn.k.weight", "*.cross_attn.v.weight")


def learnt(sd: StableDiffusion) -> Learnt:
    """What reads the text, taken home within a whole model."""
    return Learnt({f"unet.{name}": 1.0 for name, _ in sd.unet.named_parameters()
                   if any(fnmatchcase(name, pattern) for pattern in TRAINED)}, partial(export, sd), MODEL, "--model")
