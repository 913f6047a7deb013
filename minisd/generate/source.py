"""A model before its weights are loaded: all that tells its pictures from those of another."""

from dataclasses import dataclass
from pathlib import Path

import torch

from minisd.config import ModelConfig
from minisd.devices import pick_device, pick_dtype
from minisd.drawing.plan import Defaults, Drawing
from minisd.fast.compiled import compile_unet
from minisd.generate.gallery import Key
from minisd.generate.options import Options
from minisd.pipeline import StableDiffusion
from minisd.shares import Share
from minisd.store import fingerprint, load
from weights_convert.folders import CONFIG
from weights_convert.model import structured
from weights_convert.sources import open_model


@dataclass(frozen=True)
class Source:
    """A checked model folder or file, and where and how its pictures are to be drawn."""

    path: Path
    sha256: str                                   # of its weights
    own: Defaults
    cfg: ModelConfig
    device: torch.device
    dtype: str
    compiled: bool

    def key(self, drawing: Drawing) -> Key:
        return Key(drawing, self.sha256, self.device.type, self.dtype)

    def load(self) -> StableDiffusion:
        sd = load(self.path, str(self.device), self.dtype)
        if self.compiled:
            compile_unet(sd.unet)
        return sd


def opened(path: Path, options: Options, share: Share) -> Source:
    """The model at a path; its weights are read once, for their fingerprint."""
    device = pick_device(device_of(options.device, share))
    dtype = str(pick_dtype(options.dtype or "auto", device)).removeprefix("torch.")
    own, cfg = described(path)
    return Source(path, fingerprint(path), own, cfg, device, dtype, options.compile)


def described(path: Path) -> tuple[Defaults, ModelConfig]:
    """What a model says of itself: how it likes to draw, and its shapes."""
    model = open_model(path)
    model.must_be_drawable()
    return structured(Defaults, model.defaults, str(path / CONFIG)), model.cfg


def device_of(name: str, share: Share) -> str:
    """Processes that share the work take a GPU each, as far as there are that many."""
    if share.alone or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{share.local % torch.cuda.device_count()}"
