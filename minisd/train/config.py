"""A recipe: the model, the data and the stages of a training run, as one TOML file states them.

All that can be wrong with the numbers is found here, before torch is imported or a model is built.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from minisd.config import ModelConfig
from minisd.drawing.plan import Drawing
from minisd.errors import MinisdError
from minisd.train.bounds import within
from minisd.train.tuning import CustomDiffusionTask, DreamBoothTask, LoRATask, TextualInversionTask, Tuning

MULTIPLE = 64                                     # pixels: a bucket's sides, which every stage of a UNet halves
TASKS = ("vae", "clip", "finetune", "lora", "dreambooth", "dreambooth_lora", "textual_inversion", "custom_diffusion")
RESERVED = ("model", "cache")                     # folders beside those of the stages


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
    dtype: Literal["fp32", "bf16"] = "bf16"       # autocast: what is computed in
    weights: Literal["fp32", "bf16"] = "fp32"     # what learns, its average and moments; bf16 is rounded stochastically
    recompute: bool = False                       # blocks' activations are made again, not kept: less memory, more time
    shard: bool = False                           # over the ranks, by FSDP2: weights, gradients, average and moments
    save_every: int = 500
    preview_every: int = 500                      # 0 = at the end only
    log_every: int = 20
    keep: int = 2                                 # verified checkpoints kept
    max_bad_steps: int = 10                       # steps in a row that are skipped before giving up
    spike: float = 0.0                            # a gradient so many times its usual norm is skipped; 0 = none is
    shares_every: int = 0                         # each term's share in the gradient is logged; 0 = never
    tensorboard: bool = False                     # write the rows for TensorBoard, too; needs the extra `track`

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "log_every", "keep", "max_bad_steps"):
            within(name, getattr(self, name), 1)
        for name in ("warmup", "preview_every", "lr", "weight_decay", "spike", "shares_every"):
            within(name, getattr(self, name), 0)
        if self.weights == "bf16" and self.dtype != "bf16":
            raise ValueError("weights in bf16 are computed with in bf16: give dtype = \"bf16\", too")
        within("clip", self.clip, 1e-6)
        for name, value in (("ema", self.ema), ("beta 1", self.betas[0]), ("beta 2", self.betas[1])):
            within(name, value, 0, 1)


@dataclass(frozen=True)
class DataConfig:
    """Which rows of a picture-caption folder are used, and how a picture becomes a square."""

    styles: tuple[str, ...] = ()                  # empty = all
    core_only: bool = False
    size: int = 128                               # pixels a side
    crop: int = 0                                 # train on random crops of this size; 0 = the whole picture
    buckets: float = 1.0                          # largest ratio of the sides; 1 = squares, else sizes of equal area
    flip: bool = False                            # every second time, mirrored
    plain_captions: float = 0.5                   # probability of a picture's first caption; the others share the rest
    captions: tuple[str, ...] = ()                # in place of the data's own
    keep_tags: tuple[str, ...] = ()               # of captions that are tags with commas between; empty = all
    drop_tags: tuple[str, ...] = ()
    alias: str = ""                               # put before every caption: a rare word, by which it is called later
    masks: bool = False                           # x.mask.png beside x.png, or its alpha, says what counts

    def __post_init__(self) -> None:
        within("size", self.size, 1)
        within("crop", self.crop, 0, self.size)
        within("buckets", self.buckets, 1, 8)
        if self.buckets > 1 and (self.crop or self.size % MULTIPLE):
            raise ValueError(f"buckets with size {self.size}, crop {self.crop}: give no crop, and a multiple of "
                             f"{MULTIPLE}")
        within("plain_captions", self.plain_captions, 0, 1)

    @property
    def side(self) -> int:
        """Pixels a side of what is trained on."""
        return self.crop or self.size


@dataclass(frozen=True)
class VAETask:
    """L1 + KL, and after `adversary_from` updates a PatchGAN (Esser et al. 2021, arXiv 2012.09841)."""

    l2: float = 1.0                               # weight of the squared error beside the absolute one
    kl: float = 1e-4                              # weight of KL, in nats per latent
    perceptual: str = ""                          # a file with the weights of LPIPS; without it there is no such term
    perceptual_weight: float = 1.0
    adversary: float = 0.0                        # weight of the patch discriminator's term
    adversary_from: int = 0
    decoder_only: bool = False                    # the encoder stays, so that latents keep their meaning

    def __post_init__(self) -> None:
        for name in ("l2", "kl", "perceptual_weight", "adversary", "adversary_from"):
            within(name, getattr(self, name), 0)


@dataclass(frozen=True)
class CLIPTask:
    """Pictures and captions brought together (Radford et al. 2021)."""

    temperature: float = 0.07                     # at the start; learnt

    def __post_init__(self) -> None:
        within("temperature", self.temperature, 0.01, 1)  # the logits' scale is at most 100


@dataclass(frozen=True)
class FinetuneTask:
    """Denoising of latents given the text: what Stable Diffusion's UNet is trained on."""

    start: Literal["random", "model"] = "model"   # where the UNet's first weights come from
    empty_captions: float = 0.1                   # probability of no words, for classifier-free guidance
    train_text: bool = False                      # the text encoder learns on
    min_snr: float | None = None                  # gamma of min-SNR weighting (arXiv 2303.09556)
    offset_noise: float = 0.0
    shift: float = 1.0                            # above 1, timesteps are drawn noisier (arXiv 2403.03206, eq. 23)

    def __post_init__(self) -> None:
        within("empty_captions", self.empty_captions, 0, 1)
        within("min_snr", self.min_snr or 1, 1e-6)
        within("offset_noise", self.offset_noise, 0)
        within("shift", self.shift, 1e-6)


@dataclass(frozen=True)
class Stage:
    """One run of the loop: exactly one of the task tables is given, and names the task."""

    name: str                                     # of its folder, too
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    vae: VAETask | None = None
    clip: CLIPTask | None = None
    finetune: FinetuneTask | None = None
    lora: LoRATask | None = None
    dreambooth: DreamBoothTask | None = None
    dreambooth_lora: LoRATask | None = None       # a LoRA with prior preservation
    textual_inversion: TextualInversionTask | None = None
    custom_diffusion: CustomDiffusionTask | None = None

    @property
    def tuning(self) -> Tuning | None:
        """The table of a stage that makes a model one's own."""
        return next((table for table in (self.lora, self.dreambooth, self.dreambooth_lora, self.textual_inversion,
                                         self.custom_diffusion) if table is not None), None)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name) or self.name in RESERVED:
            raise ValueError(f"stage {self.name!r}: a name has letters, digits, - and _, and is not "
                             f"{' or '.join(RESERVED)}")
        if len([name for name in TASKS if vars(self)[name] is not None]) != 1:
            raise ValueError(f"stage {self.name}: give exactly one of the tables {', '.join(TASKS)}")
        if self.train.weights == "bf16" and self.finetune is None:
            raise ValueError(f"stage {self.name}: weights in bf16 are for whole UNets, that is finetune; give fp32")
        if self.train.shard:
            raise ValueError(f"stage {self.name}: only minisd.distill runs on several ranks; leave shard out")
        on_latents = self.vae is None and self.clip is None
        if not on_latents and (self.data.buckets > 1 or self.data.masks):
            excess = "buckets" if self.data.buckets > 1 else "masks"
            raise ValueError(f"stage {self.name}: it takes whole squares, leave {excess} out")
        if on_latents and self.data.crop:
            raise ValueError(f"stage {self.name}: latents are made of whole pictures, leave crop out")
        self.check_words()

    def check_words(self) -> None:
        """What the words of a stage must be for its task to learn anything from them."""
        if self.dreambooth_lora is not None and self.dreambooth_lora.prior is None:
            raise ValueError(f"stage {self.name}: dreambooth_lora has no prior; give its class's prompt as "
                             "prior = { prompt = ... }, or call the table lora")
        inversion, data = self.textual_inversion, self.data
        if inversion is not None and not any(inversion.word in text.lower() for text in (data.alias, *data.captions)):
            raise ValueError(f"stage {self.name}: no caption says {inversion.word}; say it in data.alias or "
                             "data.captions")


@dataclass(frozen=True)
class Preview:
    """What the sample grids show: prompts fixed beforehand, drawn with one seed each."""

    prompts: tuple[str, ...] = ()
    steps: int = 20
    guidance: float = 3.0
    sampler: str = "dpm++2m"
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            Drawing("", "", self.steps, self.guidance, self.sampler, self.seed, 64, 64)
        except MinisdError as fault:
            raise ValueError(f"{fault.what}: {fault.remedy}") from fault


@dataclass(frozen=True)
class Recipe:
    """A whole training run, stage after stage."""

    name: str
    stages: tuple[Stage, ...]
    model: ModelConfig = field(default_factory=ModelConfig)
    base: str = ""                                # what personal stages begin from; "" = the model of the others
    preview: Preview = Preview()
    seed: int = 0

    def __post_init__(self) -> None:
        within("seed", self.seed, 0, 2 ** 64 - 1)
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"stages {', '.join(names) or 'none'}: at least one, each with a name of its own")
        for stage in self.stages:
            if stage.tuning is None:
                self.check_sizes(stage)

    def check_sizes(self, stage: Stage) -> None:
        """Pictures must fit the networks of the stage."""
        side, factor, vision = stage.data.side, self.model.vae.factor, self.model.vision
        if stage.clip is None and side % factor:
            raise ValueError(f"stage {stage.name}: pictures of {side} pixels, but a latent is {factor} pixels wide")
        if stage.vae is not None and side < 16 and (stage.vae.adversary or stage.vae.perceptual):
            raise ValueError(f"stage {stage.name}: pictures of {side} pixels, but its critics look at 16 or more")
        if stage.clip is not None and vision is None:
            raise ValueError(f"stage {stage.name}: the model has no vision tower, give it a table model.vision")
        if stage.clip is not None and vision is not None and side != vision.image_size:
            raise ValueError(f"stage {stage.name}: pictures of {side} pixels, but the vision tower's are of "
                             f"{vision.image_size}")

    def stage(self, name: str) -> Stage:
        return {stage.name: stage for stage in self.stages}[name]
