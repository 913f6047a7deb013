"""The shapes of the models as frozen dataclasses of numbers, and the presets people know by name.

A preset states only its differences. A model keeps its config as `self.cfg` and nothing copied from it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from minisd.samplers.schedule import NoiseTable

Prediction = Literal["epsilon", "v", "x0"]
Activation = Literal["quick_gelu", "gelu"]
T = TypeVar("T")


@dataclass(frozen=True)
class UNetConfig:
    """A UNet of the Stable Diffusion family; the defaults are SD1.5's."""

    in_channels: int = 4                          # 9 = inpainting (with mask and picture), 8 = instruct-pix2pix
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)  # channels per stage
    depths: tuple[int, ...] = (1, 1, 1, 0)        # transformer layers per stage; 0 = a stage without attention
    layers: int | tuple[int, ...] = 2             # residual blocks of every or each down stage; up: one more
    mid_depth: int | None = 1                     # transformer layers in the mid block; None = no mid block
    heads: int | None = 8                         # heads per attention, or ...
    head_dim: int | None = None                   # ... channels per head
    context_dim: int = 768                        # width of the text states
    linear_proj: bool = False                     # SD2 and SDXL enter the transformer by a Linear, SD1 by a 1x1 conv
    label_dim: int | None = None                  # width of the label vector (SDXL: pooled text and sizes)
    groups: int = 32                              # groups of every GroupNorm

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths):
            raise ValueError(f"{len(self.widths)} widths but {len(self.depths)} depths: one of each per stage")
        if problem := self._layers_problem():
            raise ValueError(f"layers={self.layers}: {problem}")
        if (self.heads is None) == (self.head_dim is None):
            raise ValueError(f"heads={self.heads} and head_dim={self.head_dim}: give exactly one of them")
        if self.mid_depth is not None and self.mid_depth < 1:
            raise ValueError(f"mid_depth={self.mid_depth}: at least 1, or None for no mid block")
        for width in self.widths:
            if width % self.groups or width % (self.heads or self.head_dim or 1):
                raise ValueError(f"width {width} is not a multiple of {self.groups} groups and of the heads")

    def _layers_problem(self) -> str:
        counts = (self.layers,) if isinstance(self.layers, int) else self.layers
        if min(counts, default=0) < 1:
            return "a stage has at least one residual block"
        if isinstance(self.layers, int):
            return ""
        if len(counts) != len(self.widths):
            return f"{len(counts)} counts for {len(self.widths)} stages"
        return "" if len(set(counts)) > 1 else f"write {counts[0]}, it is the same in every stage"

    def layers_at(self, stage: int) -> int:
        """Residual blocks of a down stage, the outermost being 0; the up stage of the same width has one more."""
        return self.layers if isinstance(self.layers, int) else self.layers[stage]

    @property
    def skips(self) -> int:
        """Connections from the way down to the way up: conv_in, the residual blocks and the resizes."""
        return sum(self.layers_at(i) + 1 for i in range(len(self.widths)))

    def heads_at(self, width: int) -> int:
        """Attention heads in a stage of this width."""
        return self.heads or width // (self.head_dim or width)


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder between pictures and latents; the defaults are SD1.5's (8 x 8 pixels per latent)."""

    channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2                               # residual blocks per encoder stage; the decoder has one more
    groups: int = 32

    @property
    def factor(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class Word:
    """A word that a text encoder has learnt later; its tokens follow the vocabulary's, in the order of the words."""

    text: str
    vectors: int = 1                              # tokens that it becomes
    lora: str = ""                                # the adapter that brought it along and takes it away again, if any

    def __post_init__(self) -> None:
        if not self.text or self.text != " ".join(self.text.split()).lower() or set(self.text) & set("()[]|:\\"):
            raise ValueError(f"the word {self.text!r}: it has small letters, single spaces, and none of ()[]|:\\")
        if self.vectors < 1:
            raise ValueError(f"the word {self.text!r} of {self.vectors} vectors: at least 1")


@dataclass(frozen=True)
class CLIPTextConfig:
    """CLIP's text transformer; the defaults are ViT-L/14's, as in SD1.5."""

    vocab_size: int = 49_408
    window: int = 77                              # tokens of one window, start and end included
    width: int = 768
    depth: int = 12
    heads: int = 12
    activation: Activation = "quick_gelu"
    projection_dim: int | None = None             # width of the projected pooled state; None = no projection
    skipped_layers: int = 0                       # last layers whose work the hidden states leave out (CLIP skip)
    final_norm: bool = True                       # whether the hidden states pass the final LayerNorm (SDXL: no)
    pad: Literal["end", "zero"] = "end"           # the token that fills a window (SD1: the end token, SD2: 0)
    words: tuple[Word, ...] = ()                  # those learnt later, beyond the vocabulary

    def __post_init__(self) -> None:
        texts = [word.text for word in self.words]
        if len(set(texts)) < len(texts):
            raise ValueError(f"the words {', '.join(texts)}: each at most once")
        if not 0 <= self.skipped_layers < self.depth:
            raise ValueError(f"{self.skipped_layers} skipped layers of {self.depth}: at least one must stay")


@dataclass(frozen=True)
class CLIPVisionConfig:
    """CLIP's vision transformer; the defaults are ViT-L/14's."""

    image_size: int = 224
    patch: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    activation: Activation = "quick_gelu"
    projection_dim: int = 768


@dataclass(frozen=True)
class ModelConfig:
    """Everything that tells one Stable Diffusion from another; the defaults are SD1.5's."""

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text: tuple[CLIPTextConfig, ...] = (CLIPTextConfig(),)
    vision: CLIPVisionConfig | None = None        # the vision tower, where it is shipped with the model
    noise: NoiseTable = field(default_factory=NoiseTable)
    prediction: Prediction = "epsilon"
    latent_scale: float = 0.18215                 # latents = scale * VAE output, for a standard deviation near 1
    pooled_label: bool = False                    # the pooled text is the UNet's label as well
    size: int = 512                               # pixels a side of the pictures it was trained on

    def __post_init__(self) -> None:
        if self.noise.zero_snr and self.prediction == "epsilon":
            raise ValueError("zero_snr noise levels and epsilon prediction: pure noise says nothing of the picture; "
                             "such a network predicts v or x0")


def text_parts(each: Iterable[T]) -> dict[str, T]:
    """A model's text encoders, or something of each, by their parts' names: text, text_2."""
    return {"text" if n == 1 else f"text_{n}": one for n, one in enumerate(each, start=1)}


SD15 = UNetConfig()
SD15_MIDLESS = replace(SD15, mid_depth=None)      # the first compression experiment: no mid block
SD15_INPAINT, SD15_PIX2PIX = replace(SD15, in_channels=9), replace(SD15, in_channels=8)
SD21 = replace(SD15, heads=None, head_dim=64, context_dim=1024, linear_proj=True)
SDXL = replace(SD21, widths=(320, 640, 1280), depths=(0, 2, 10), mid_depth=10, context_dim=2048, label_dim=2816)
BK_BASE = replace(SD15, layers=1)                 # BK-SDM (arXiv 2305.15798)
BK_SMALL = replace(BK_BASE, mid_depth=None)
BK_TINY = replace(BK_SMALL, widths=(320, 640, 1280), depths=(1, 1, 1))
TINY = replace(SD15, widths=(32, 64, 64, 64), context_dim=32, heads=4, groups=8)

PRESETS: dict[str, UNetConfig] = {
    "sd15": SD15, "sd15-midless": SD15_MIDLESS, "sd15-inpaint": SD15_INPAINT, "sd15-pix2pix": SD15_PIX2PIX,
    "sd21": SD21, "sdxl": SDXL, "bk-base": BK_BASE, "bk-small": BK_SMALL, "bk-tiny": BK_TINY, "tiny": TINY,
}

CLIP_L = CLIPTextConfig()                                                                       # SD1.5
CLIP_H = CLIPTextConfig(width=1024, depth=24, heads=16, activation="gelu", skipped_layers=1, pad="zero")  # SD2.1
TINY_VAE = VAEConfig(widths=(16, 32, 32, 32), layers=1, groups=8)
TINY_TEXT = CLIPTextConfig(vocab_size=1024, width=32, depth=2, heads=4)
TINY_MODEL = ModelConfig(unet=TINY, vae=TINY_VAE, text=(TINY_TEXT,), size=64)
