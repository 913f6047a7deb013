"""The options of `python -m minisd.generate`, by topic: --help shows each class as a group of its own.

Only the command line's own libraries are imported here, so that --help is quick.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from minisd.command import given, shown

MODEL, SEED, COUNT, BATCH = "emoji", 0, 1, 4      # for what is left open, with or without a recorded picture
DTYPES = ("auto", "float32", "float16", "bfloat16", "int8")
OWN = "the model's own"

File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True)
class Picture:
    """What decides a picture, beside its prompt."""

    negative: Annotated[str | None, given(str, "TEXT"), shown("", "-n", "--negative-prompt")] = None
    """What to keep out of the picture."""
    steps: Annotated[int | None, given(int, "1..1000"), shown(OWN)] = None
    """Steps from noise to picture: more is finer and slower."""
    cfg: Annotated[float | None, given(float, "0..100"), shown(OWN, "--guidance-scale")] = None
    """How strictly to follow the prompt; 1 is no guidance."""
    sampler: Annotated[str | None, given(str, "NAME"), shown(OWN)] = None
    """Such as "euler a", "ddim", "pndm", "dpm++2m karras"."""
    seed: Annotated[int | None, given(int, "0..2^64-1"), shown("0")] = None
    """Seed of each prompt's first picture; the next ones count up."""
    size: Annotated[str | None, given(str, "WxH"), shown(OWN)] = None
    """Width and height in pixels, multiples of 8 from 64 to 2048."""
    width: Annotated[int | None, given(int, "PIXELS"), shown("", "-W")] = None
    """Width alone."""
    height: Annotated[int | None, given(int, "PIXELS"), shown("", "-H")] = None
    """Height alone."""
    model: Annotated[str | None, given(str, "NAME|PATH"), shown("emoji")] = None
    """An embedded model; or a checkpoint file, a diffusers folder or one of minisd's."""
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE|NAME[:STRENGTH]", help_behavior_hint="")] = ()
    """Such as style.safetensors:0.8, several times if need be; <lora:style:0.8> in a prompt asks for it there alone.
    NAME:0.8:te=0.5:in=1:mid=0:out=0.5 weighs the text encoders and the UNet's way down, middle and way up apart."""
    embedding: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE|NAME", help_behavior_hint="")] = ()
    """A textual inversion, several times if need be: prompts say its word, or its file's name."""


@dataclass(frozen=True)
class Guidance:
    """How guidance is applied, beside its scale (--cfg)."""

    cfg_ramp: Annotated[str | None, given(str, "SHARE,SHARE,..."), shown()] = None
    """Shares of the guidance, spread evenly over the steps: 0,1 begins without any and ends with all."""
    cfg_interval: Annotated[str | None, given(str, "LOW,HIGH"), shown()] = None
    """Guide only while the noise level sigma is above LOW and at most HIGH; elsewhere a step costs half."""
    cfg_rescale: Annotated[float | None, given(float, "0..1"), shown("0")] = None
    """Give back this share of the contrast that guidance adds; 0.7 for models of v prediction."""
    threshold: Annotated[float | None, given(float, "0.5..1"), shown("", "--dynamic-threshold")] = None
    """Cut the picture at this quantile in every step, such as 0.995."""
    image_cfg: Annotated[float | None, given(float, "0..100"), shown("", "--image-guidance")] = None
    """Of instruct-pix2pix models: how strictly to follow the --image."""


@dataclass(frozen=True)
class Start:
    """To begin from a picture."""

    image: Annotated[Path | None, given(Path, "FILE"), shown("", "-i", "--init-image")] = None
    """The picture to begin from, or to change by an instruct-pix2pix model."""
    strength: Annotated[float | None, given(float, "0..1"), shown("0.75; 1 with a mask or --image-cfg")] = None
    """How far to leave it: the share of the steps that are taken."""
    mask: Annotated[Path | None, given(Path, "FILE"), shown()] = None
    """A picture of the same size: white is drawn anew, black comes back byte for byte."""
    feather: Annotated[int | None, given(int, "PIXELS"), shown("0")] = None
    """Pixels around the mask over which the new fades into the old."""
    only_masked: Annotated[int | None, given(int, "PIXELS"), shown()] = None
    """Draw the masked part alone in the full size, with this many pixels of context."""


@dataclass(frozen=True)
class Hires:
    """A second walk: the picture is enlarged and drawn further (hires fix). Any of these asks for it."""

    hires_upscale: Annotated[float | None, given(float, "1..8"), shown("2", "--hires")] = None
    """How many times larger."""
    hires_strength: Annotated[float | None, given(float, "0..1"), shown("0.7")] = None
    """How far to leave the smaller picture: the share of the steps that are taken."""
    hires_steps: Annotated[int | None, given(int, "1..1000"), shown("--steps")] = None
    """Steps of the second walk."""
    hires_upscaler: Annotated[str | None, given(str, "latent|lanczos"), shown("latent")] = None
    """Whether latents or pixels are enlarged."""


@dataclass(frozen=True)
class Many:
    """Several pictures."""

    prompts: File = None
    """A text file with more prompts, one to a line. What --out holds of these pictures is not drawn again."""
    count: Annotated[int | None, given(int, "1..10000"), shown("1")] = None
    """Pictures of each prompt."""
    batch: Annotated[int | None, given(int, "1..64"), shown("4", "--batch-size")] = None
    """Pictures drawn together: faster, and hungrier for memory."""
    grid: Annotated[Path | None, arg(metavar="TOML", help_behavior_hint="")] = None
    """Draw a grid: its axes are options, its cells pictures. What --out holds of them is not drawn again."""


@dataclass(frozen=True)
class Noise:
    """Fresh noise on the way, of the samplers that take some."""

    eta: Annotated[float | None, given(float, "0..10"), shown("the sampler's own")] = None
    """How much: 0 is none, 1 as much as DDPM and the ancestral samplers add."""
    churn: Annotated[float | None, given(float, "0..1000"), shown("0")] = None
    """Of Euler, Heun and DPM2: noise added before each step and taken away by it, over the whole way."""
    churn_low: Annotated[float | None, given(float, "SIGMA"), shown("0")] = None
    """The lowest noise level at which it is added,"""
    churn_high: Annotated[float | None, given(float, "SIGMA"), shown()] = None
    """and the highest one."""
    churn_noise: Annotated[float | None, given(float, "0..10"), shown("1")] = None
    """Its deviation; slightly more than 1 keeps details."""


@dataclass(frozen=True)
class Shortcuts:
    """Nearly the same picture in less time."""

    reuse_features: Annotated[int | None, given(int, "1..1000"), shown("1")] = None
    """Compute the whole UNet only in every so many calls, and between them its outermost blocks."""
    merge_tokens: Annotated[float | None, given(float, "0..0.75"), shown("0")] = None
    """Merge this share of the pixels that are alike before they attend to each other; for large pictures."""


@dataclass(frozen=True)
class Questions:
    """Answered without drawing anything."""

    explain: bool = False
    """How each PROMPT is read: its tokens, weights and windows, and what it says in which steps."""
    list_samplers: bool = False
    """The names that --sampler takes."""
    sampler_info: Annotated[str | None, given(str, "NAME"), shown()] = None
    """What a sampler does in --steps, and its noise levels."""


@dataclass(frozen=True)
class Options:
    """Draw pictures from words. Each is written whole, with its options inside, and none is ever overwritten."""

    prompt: Annotated[Positional[tuple[str, ...]], arg(metavar="PROMPT", help_behavior_hint="")] = ()
    """What to draw; each prompt in its own quotes."""
    picture: OmitArgPrefixes[Picture] = Picture()
    many: OmitArgPrefixes[Many] = Many()
    guidance: OmitArgPrefixes[Guidance] = Guidance()
    start: OmitArgPrefixes[Start] = Start()
    hires: OmitArgPrefixes[Hires] = Hires()
    noise: OmitArgPrefixes[Noise] = Noise()
    shortcuts: OmitArgPrefixes[Shortcuts] = Shortcuts()
    questions: OmitArgPrefixes[Questions] = Questions()
    from_image: Annotated[Path | None, arg(metavar="PNG", help_behavior_hint="")] = None
    """Draw a written picture again; options given beside it replace its own."""
    lora_dir: Annotated[Path, arg(metavar="FOLDER")] = Path(".")
    """Where LoRAs and embeddings lie that are asked for by name."""
    allow_unused: bool = False
    """Take of a LoRA what the model has modules for, as a pruned one may not have all, and say what is left out."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("pictures")
    """Where to write the pictures."""
    preview_every: Annotated[int | None, given(int, "1..1000"), shown()] = None
    """Show what the pictures are becoming after every so many steps, in preview.png beside them."""
    device: Annotated[str, arg(metavar="auto|cpu|cuda")] = "auto"
    """Where to compute."""
    dtype: Annotated[str | None, given(str, "|".join(DTYPES)), shown("auto")] = None
    """Precision; auto is the fast one of this machine, int8 keeps its weights in half the memory."""
    compile: bool = False
    """Compile the UNet before the first picture, in a minute or more: for many pictures, also of several sizes.
    Beside --merge-tokens every size is compiled by itself."""
    profile: bool = False
    """Say where the time went: in which network, and in which kind of layer."""
    debug: bool = False
    """Show the traceback of an error."""


# The groups that decide one picture.
GROUPS = {"picture": Picture, "guidance": Guidance, "start": Start, "hires": Hires, "noise": Noise,
          "shortcuts": Shortcuts}


def chosen(options: Options) -> dict[str, Any]:
    """What was given of the options that decide one picture, by name; the prompt is apart."""
    return {name: value for group in GROUPS for name, value in vars(vars(options)[group]).items()
            if value is not None and value != ()}


def changed(options: Options, values: Mapping[str, Any]) -> Options:
    """The options with other values for some of those that decide one picture, each in its group."""
    groups = {group: replace(vars(options)[group], **{field.name: values[field.name] for field in fields(cls)
                                                      if field.name in values})
              for group, cls in GROUPS.items()}
    return replace(options, **groups)
