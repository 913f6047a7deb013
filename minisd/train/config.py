"""A recipe: the model, the data and the stages of a training run, as one TOML file states them."""

from dataclasses import dataclass, field
from typing import Literal

from minisd.config import ModelConfig


@dataclass(frozen=True)
class TrainConfig:
    """How the loop runs; all periods count optimiser updates."""

    steps: int = 1000
    batch: int = 16                               # pictures per forward pass
    accumulate: int = 1                           # forward passes per update
    lr: float = 1e-4
    warmup: int = 100                             # updates from 0 to the full rate
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # from full to 0 at `steps`, unless constant
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0                             # largest norm of the gradient
    ema: float = 0.999                            # decay of the averaged weights; ramped up while training is young
    dtype: Literal["fp32", "bf16"] = "bf16"       # autocast; the parameters themselves are float32
    save_every: int = 500
    preview_every: int = 500
    log_every: int = 20
    keep: int = 2                                 # verified checkpoints kept
    max_bad_steps: int = 10                       # non-finite steps in a row before giving up


@dataclass(frozen=True)
class DataConfig:
    """Which rows of a picture-caption folder are used, and how a picture becomes a square."""

    styles: tuple[str, ...] = ()                  # empty = all
    core_only: bool = False
    size: int = 128                               # pixels a side
    crop: int = 0                                 # train on random crops of this size; 0 = the whole picture
    plain_captions: float = 0.5                   # probability of a picture's first caption; the others share the rest


@dataclass(frozen=True)
class VAETask:
    """L1 + KL, and after `adversary_from` updates a PatchGAN (Esser et al. 2021, arXiv 2012.09841)."""

    l2: float = 1.0                               # weight of the squared error beside the absolute one
    kl: float = 1e-4                              # weight of KL, in nats per latent
    adversary: float = 0.0                        # weight of the patch discriminator's term
    adversary_from: int = 0
    decoder_only: bool = False                    # the encoder stays, so that latents keep their meaning


@dataclass(frozen=True)
class CLIPTask:
    """Pictures and captions brought together (Radford et al. 2021)."""

    temperature: float = 0.07                     # at the start; learnt


@dataclass(frozen=True)
class FinetuneTask:
    """Denoising of latents given the text: what Stable Diffusion's UNet is trained on."""

    start: Literal["random", "model"] = "model"   # where the UNet's first weights come from
    empty_captions: float = 0.1                   # probability of no words, for classifier-free guidance
    train_text: bool = False                      # the text encoder learns on
    min_snr: float | None = None                  # gamma of min-SNR weighting (arXiv 2303.09556)
    offset_noise: float = 0.0
    shift: float = 1.0                            # above 1, timesteps are drawn noisier (arXiv 2403.03206, eq. 23)


@dataclass(frozen=True)
class Stage:
    """One run of the loop: exactly one of the task tables is given, and names the task."""

    name: str
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    vae: VAETask | None = None
    clip: CLIPTask | None = None
    finetune: FinetuneTask | None = None

    def __post_init__(self) -> None:
        if len([task for task in (self.vae, self.clip, self.finetune) if task is not None]) != 1:
            raise ValueError(f"stage {self.name}: give exactly one of the tables vae, clip, finetune")


@dataclass(frozen=True)
class Preview:
    """What the sample grids show: prompts fixed beforehand, drawn with one seed each."""

    prompts: tuple[str, ...] = ()
    steps: int = 20
    guidance: float = 3.0
    sampler: str = "dpm++2m"
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """A whole training run, stage after stage."""

    name: str
    stages: tuple[Stage, ...]
    model: ModelConfig = field(default_factory=ModelConfig)
    preview: Preview = Preview()
    seed: int = 0

    def stage(self, name: str) -> Stage:
        return {stage.name: stage for stage in self.stages}[name]


