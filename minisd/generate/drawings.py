"""Options to drawings and back: what is left open is as the model likes it best."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from minisd.drawing import control
from minisd.drawing.canvas import drawable
from minisd.drawing.control import Fresh, Guide, Mask, Start, Upscaler
from minisd.drawing.plan import STANDARD, Defaults, Drawing
from minisd.drawing.ranges import STEPS
from minisd.drawing.tags import Ask, Embedding, Lora, taken_out
from minisd.errors import USAGE, MinisdError
from minisd.generate.options import COUNT, SEED, Hires, Noise, Options, changed
from minisd.generate.shelf import unlent
from minisd.prompt import read

SIDE = 512                                        # stands for the model's own size until it is known


class Shot(NamedTuple):
    """What a drawing knows of a picture that it begins from, or of a mask."""

    sha256: str
    size: tuple[int, int]


Look = Callable[[Path, str], Shot]                # at a file, which is an "image" or a "mask"
Lend = Callable[[Path, Sequence[str], Sequence[Ask]], tuple[Lora, ...]]     # LoRAs by options and by tags, of a folder
Say = Callable[[Path, Sequence[str], Collection[str]], tuple[Embedding, ...]]   # by options, those that texts say


def unseen(path: Path, kind: str) -> Shot:
    """Stands for a picture until it is opened."""
    return Shot("0" * 64, (SIDE, SIDE))


def unsaid(folder: Path, options: Sequence[str], texts: Collection[str]) -> tuple[Embedding, ...]:
    """Stands for embeddings until their words are known."""
    return ()


@dataclass(frozen=True)
class Habits:
    """What a drawing follows from beside its options."""

    own: Defaults = STANDARD
    side: int = SIDE
    look: Look = unseen
    lend: Lend = unlent
    say: Say = unsaid


def check(options: Options) -> None:
    """Refuse what no model and no picture could make right: neither is opened yet."""
    hires(options.hires)
    sized = options.picture.width and options.picture.height
    surely = options if sized or options.hires == Hires() else changed(options, {"hires_upscale": 1.0})
    drawing(surely, "", Habits(Defaults(steps=STEPS[1])))


def drawings(options: Options, prompts: Sequence[str], habits: Habits) -> list[Drawing]:
    """One drawing per picture: the prompts in order, each with rising seeds."""
    firsts = [drawing(options, prompt, habits) for prompt in prompts]
    return [replace(first, seed=first.seed + n) for first in firsts for n in range(options.many.count or COUNT)]


def drawing(options: Options, prompt: str, habits: Habits) -> Drawing:
    """The drawing of a prompt's first picture."""
    picture, own = options.picture, habits.own
    start, mask, size = beginning(options, habits)
    text, tags = taken_out(prompt)
    steps = own.steps if picture.steps is None else picture.steps
    return Drawing(text, negative(options), steps,
                   own.guidance if picture.cfg is None else picture.cfg,
                   own.sampler if picture.sampler is None else picture.sampler,
                   SEED if picture.seed is None else picture.seed,
                   size[0] if picture.width is None else picture.width,
                   size[1] if picture.height is None else picture.height,
                   guide(options), start, mask, options.guidance.image_cfg, hires(options.hires), fresh(options.noise),
                   habits.lend(options.lora_dir, picture.lora, tags),
                   habits.say(options.lora_dir, picture.embedding, spoken([text, negative(options)], steps))
                   if picture.embedding else (), shortcuts(options))


def spoken(prompts: Sequence[str], steps: int) -> list[str]:
    """Every text that is read at any time, as it is read."""
    return list(dict.fromkeys(piece.text for prompt in prompts for reading in read(prompt).readings(steps)
                              for part in reading for piece in part))


def negative(options: Options) -> str:
    """The negative prompt, in which nothing is asked for."""
    text = options.picture.negative or ""
    if taken_out(text)[1]:
        raise MinisdError("a LoRA in the negative prompt", f"{text[:60]!r}", "it would be added all the same",
                          "put it in the prompt; a negative strength takes it away", USAGE)
    return text


def guide(options: Options) -> Guide:
    """How guidance is applied."""
    given = options.guidance
    interval = numbers("cfg-interval", given.cfg_interval)
    if interval and len(interval) != 2:
        raise MinisdError(f"--cfg-interval {given.cfg_interval}", remedy="give two numbers, such as 0.3,5", code=USAGE)
    return Guide(numbers("cfg-ramp", given.cfg_ramp), (interval[0], interval[1]) if interval else None,
                 given.cfg_rescale or 0.0, given.threshold)


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """Numbers between commas; none where nothing was given."""
    try:
        return tuple(float(word) for word in text.split(",")) if text is not None else ()
    except ValueError:
        raise MinisdError(f"--{option} {(text or '')[:40]!r}", remedy="give numbers with commas between them",
                          code=USAGE) from None


def beginning(options: Options, habits: Habits) -> tuple[Start | None, Mask | None, tuple[int, int]]:
    """The picture to begin from, what of it is drawn anew, and the size where none was given."""
    given, size = options.start, (habits.side, habits.side)
    mask = None
    if given.mask is not None:
        mask = Mask(habits.look(given.mask, "mask").sha256, given.feather or 0, given.only_masked)
    elif given.feather is not None or given.only_masked is not None:
        raise MinisdError("--feather or --only-masked, but no mask", remedy="give one by --mask", code=USAGE)
    if given.image is None:
        if given.strength is not None:
            raise MinisdError("--strength, but no picture", remedy="give one by --image", code=USAGE)
        return None, mask, size
    shot = habits.look(given.image, "image")
    whole = 0.75 if mask is None and options.guidance.image_cfg is None else 1.0
    start = Start(shot.sha256, whole if given.strength is None else given.strength)
    if given.only_masked is not None:
        return start, mask, size
    # A picture that cannot be drawn in its own size needs another; half a size is judged by the drawing.
    sized = options.picture.width or options.picture.height
    return start, mask, shot.size if sized else drawable(shot.size)


def hires(given: Hires) -> control.Hires | None:
    """The second walk, if any of its options is given."""
    if given == Hires():
        return None
    plain = control.Hires()
    return control.Hires(plain.upscale if given.hires_upscale is None else given.hires_upscale,
                         plain.strength if given.hires_strength is None else given.hires_strength,
                         given.hires_steps, cast(Upscaler, given.hires_upscaler or plain.upscaler))


def fresh(given: Noise) -> Fresh:
    """The noise on the way."""
    return Fresh(given.eta, given.churn or 0.0, given.churn_low or 0.0, given.churn_high,
                 1.0 if given.churn_noise is None else given.churn_noise)


def shortcuts(options: Options) -> control.Shortcuts:
    """What is not computed in full."""
    given = options.shortcuts
    return control.Shortcuts(control.EXACT.reuse if given.reuse_features is None else given.reuse_features,
                             control.EXACT.merge if given.merge_tokens is None else given.merge_tokens)


def recorded(drawing: Drawing) -> dict[str, Any]:
    """The options of a recorded drawing by name, but for its prompt and its pictures."""
    own: dict[str, Any] = {"negative": drawing.negative, "steps": drawing.steps, "cfg": drawing.guidance,
                           "sampler": drawing.sampler, "seed": drawing.seed,
                           "width": drawing.width, "height": drawing.height, "image_cfg": drawing.image_guidance,
                           "cfg_rescale": drawing.guide.rescale, "threshold": drawing.guide.threshold,
                           "eta": drawing.fresh.eta, "churn": drawing.fresh.churn, "churn_low": drawing.fresh.low,
                           "churn_high": drawing.fresh.high, "churn_noise": drawing.fresh.noise,
                           "reuse_features": drawing.shortcuts.reuse, "merge_tokens": drawing.shortcuts.merge}
    if drawing.loras:
        own["lora"] = tuple(map(str, drawing.loras))
    if drawing.embeddings:
        own["embedding"] = tuple(one.name for one in drawing.embeddings)
    if drawing.guide.ramp:
        own["cfg_ramp"] = ",".join(map(repr, drawing.guide.ramp))
    if drawing.guide.interval:
        own["cfg_interval"] = ",".join(map(repr, drawing.guide.interval))
    if drawing.start:
        own["strength"] = drawing.start.strength
    if drawing.mask:
        own |= {"feather": drawing.mask.feather, "only_masked": drawing.mask.padding}
    if drawing.hires:
        own |= {f"hires_{field.name}": vars(drawing.hires)[field.name] for field in fields(drawing.hires)}
    return own
