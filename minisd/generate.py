"""`python -m minisd.generate "a red apple"`: pictures from words, as PNG files that say how they were made."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from minisd.command import command, given, shown
from minisd.errors import INTERRUPTED, RESOURCE, USAGE, MinisdError

if TYPE_CHECKING:                                 # --help must be quick: neither torch nor numpy is needed for it
    from PIL.Image import Image
    from torch import Tensor

    from minisd.drawing import Drawing
    from minisd.metadata import Drawn
    from minisd.pipeline import StableDiffusion
    from minisd.samplers.loop import Interval

MODEL, SEED, COUNT, BATCH = "emoji", 0, 1, 4      # for what is left open, with or without a recorded picture
COUNTS, BATCHES = (1, 10_000), (1, 64)
LARGEST_FILE = 1 << 24                            # bytes of a file of prompts
LARGEST_GRID = 1 << 26                            # pixels
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Options:
    """Draw pictures from words. Each is written whole, with its options inside, and none is ever overwritten."""

    prompt: Annotated[Positional[tuple[str, ...]], arg(metavar="PROMPT", help_behavior_hint="")] = ()
    """What to draw; each prompt in its own quotes."""
    prompts: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """A text file with more prompts, one to a line."""
    negative: Annotated[str | None, given(str, "TEXT"), shown("", "-n", "--negative-prompt")] = None
    """What to keep out of the picture."""
    steps: Annotated[int | None, given(int, "1..1000"), shown("the model's own")] = None
    """Steps from noise to picture: more is finer and slower."""
    cfg: Annotated[float | None, given(float, "0..100"), shown("the model's own", "--guidance-scale")] = None
    """How strictly to follow the prompt; 1 is no guidance."""
    sampler: Annotated[str | None, given(str, "NAME"), shown("the model's own")] = None
    """Such as "euler a", "ddim", "pndm", "dpm++2m karras"."""
    seed: Annotated[int | None, given(int, "0..2^64-1"), shown("0")] = None
    """Seed of each prompt's first picture; the next ones count up."""
    count: Annotated[int | None, given(int, "1..10000"), shown("1")] = None
    """Pictures of each prompt."""
    batch: Annotated[int | None, given(int, "1..64"), shown("4", "--batch-size")] = None
    """Pictures drawn together: faster, and hungrier for memory."""
    size: Annotated[str | None, given(str, "WxH"), shown("the model's own")] = None
    """Width and height in pixels, multiples of 8 from 64 to 2048."""
    width: Annotated[int | None, given(int, "PIXELS"), shown("", "-W")] = None
    """Width alone."""
    height: Annotated[int | None, given(int, "PIXELS"), shown("", "-H")] = None
    """Height alone."""
    model: Annotated[str | None, given(str, "NAME|FOLDER"), shown("emoji")] = None
    """An embedded model, or a folder with config.json and safetensors files."""
    from_image: Annotated[Path | None, arg(metavar="PNG", help_behavior_hint="")] = None
    """Draw a written picture again; options given beside it replace its own."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("pictures")
    """Where to write the pictures."""
    device: Annotated[str, arg(metavar="auto|cpu|cuda")] = "auto"
    """Where to compute."""
    dtype: Annotated[str | None, given(str, "|".join(DTYPES)), shown("auto")] = None
    """Precision; auto is the fast one of this machine."""
    debug: bool = False
    """Show the traceback of an error."""


def main(args: Sequence[str] | None = None) -> int:
    """The exit code: see `errors`."""
    return command(Options, "python -m minisd.generate", run, args)


def run(options: Options) -> None:
    """Check all that can be checked, then load the model and draw."""
    from minisd import metadata
    options = with_sides(options)
    drawn = metadata.read_drawn(options.from_image) if options.from_image else None
    again = drawn is not None and not (options.prompt or options.prompts or options.count or options.batch)
    options = options if drawn is None else remembering(options, drawn)
    prompts = read_prompts(options)
    check(options, len(prompts))
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)

    # Threads that wait by spinning make this twelve times slower beside another busy process; torch reads it once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from minisd.store import embedded, find, fingerprint, load
    folder = find(options.model) if options.model else embedded(drawn.model if drawn else MODEL)
    sha256 = fingerprint(folder)
    if drawn is not None:
        check_model(drawn, sha256)
    sd = load(folder, options.device, options.dtype or "auto")
    drawings = wanted(sd, options, prompts)
    # Drawn again, a picture stands among as many as the first time, so that every kernel rounds as it did then.
    groups = [drawings * drawn.batch] if again and drawn else list(sd.batches(drawings, options.batch or BATCH))
    try:
        draw(sd, groups, options, sha256, only_first=again)
    except KeyboardInterrupt as stop:
        raise MinisdError("interrupted", str(options.out), "the pictures already there are whole",
                          code=INTERRUPTED) from stop


# ---------------------------------------------------------------- options, before anything is loaded
def with_sides(options: Options) -> Options:
    """--size taken apart into width and height."""
    if options.size is None:
        return options
    if options.width or options.height:
        raise MinisdError("--size beside --width or --height", remedy="give one or the other", code=USAGE)
    sides = options.size.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
        raise MinisdError(f"--size {options.size[:30]!r}", remedy="give two numbers of pixels, such as 128x128",
                          code=USAGE)
    return replace(options, size=None, width=int(sides[0]), height=int(sides[1]))


def remembering(options: Options, drawn: "Drawn") -> Options:
    """What is left open, from a recorded picture."""
    what = drawn.drawing
    own = {"negative": what.negative, "steps": what.steps, "cfg": what.guidance, "sampler": what.sampler,
           "seed": what.seed, "width": what.width, "height": what.height,
           "dtype": drawn.dtype, "batch": drawn.batch}
    if not options.prompts:
        own["prompt"] = (what.prompt,)
    if options.prompt:
        own["prompt"] = options.prompt
    given = {name: value for name, value in vars(options).items() if value is not None and name != "prompt"}
    return replace(options, **{**own, **given})


def read_prompts(options: Options) -> list[str]:
    """The prompts of the command line, then those of the file."""
    prompts = list(options.prompt)
    if options.prompts is not None:
        try:
            with options.prompts.open("rb") as file:
                text = file.read(LARGEST_FILE + 1)
            if len(text) > LARGEST_FILE:
                raise ValueError(f"more than {LARGEST_FILE >> 20} MiB")
            prompts += [line for line in text.decode("utf-8-sig").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise MinisdError("the prompts cannot be read", str(options.prompts), str(error)[:200],
                              "give a text file in UTF-8 with a prompt on each line") from error
    if not prompts:
        raise MinisdError("no prompt", remedy='say what to draw, such as "a red apple"', code=USAGE)
    return prompts


def check(options: Options, prompts: int) -> None:
    """Refuse values out of range now: loading torch and a model takes seconds."""
    from minisd.drawing import SEEDS, STANDARD, Drawing, in_range
    count, seed = options.count or COUNT, options.seed or SEED
    in_range("count", COUNT if options.count is None else options.count, *COUNTS)
    in_range("batch", BATCH if options.batch is None else options.batch, *BATCHES)
    in_range("seed", seed, 0, SEEDS - count)
    if (options.dtype or "auto") not in DTYPES:
        raise MinisdError(f"--dtype {options.dtype}", remedy=f"give {', '.join(DTYPES)}", code=USAGE)
    if prompts * count > COUNTS[1]:
        raise MinisdError(f"{prompts} prompts with --count {count}", remedy=f"ask for at most {COUNTS[1]} pictures",
                          code=USAGE)
    Drawing("", "", STANDARD.steps if options.steps is None else options.steps,
            STANDARD.guidance if options.cfg is None else options.cfg, options.sampler or STANDARD.sampler, seed,
            512 if options.width is None else options.width, 512 if options.height is None else options.height)


def check_model(drawn: "Drawn", sha256: str) -> None:
    """A picture is drawn again by the weights that drew it, or not at all."""
    if drawn.model_sha256 != sha256:
        raise MinisdError(f"the picture was drawn by other weights than these, called {drawn.model[:60]!r}", "--model",
                          f"sha256 {drawn.model_sha256[:10]} there, {sha256[:10]} here",
                          "give the model that drew it by --model, or its options without --from-image", USAGE)


# ---------------------------------------------------------------- drawing
def wanted(sd: "StableDiffusion", options: Options, prompts: Sequence[str]) -> list["Drawing"]:
    """One drawing per picture: the prompts in order, each with rising seeds."""
    size = (options.width or sd.cfg.size, options.height or sd.cfg.size)
    first = sd.drawing("", options.negative or "", options.steps, options.cfg, options.sampler,
                       options.seed or SEED, size)
    return [replace(first, prompt=prompt, seed=first.seed + n)
            for prompt in prompts for n in range(options.count or COUNT)]


def draw(sd: "StableDiffusion", groups: Sequence[list["Drawing"]], options: Options, sha256: str,
         only_first: bool) -> None:
    """Draw batch after batch, write each picture as soon as it is there, and a grid in the end."""
    from tqdm import tqdm

    from minisd import __version__, images, metadata
    pictures: list[Image] = []
    dtype = str(sd.dtype).removeprefix("torch.")

    def step(x: "Tensor", s: "Interval") -> "Tensor":
        bar.update()
        return x

    with tqdm(total=sum(group[0].steps for group in groups), unit="step", disable=None) as bar:
        for group in groups:
            with enough_memory():
                batch = sd.draw(group, step)
            for picture, drawing in zip(batch[:1] if only_first else batch, group, strict=False):
                drawn = metadata.Drawn(drawing, sd.name, sha256, sd.device.type, dtype, len(group), __version__)
                path = images.write_png(picture, options.out, str(drawing.seed), metadata.chunks(drawn))
                tqdm.write(str(path), file=sys.stdout)
                sys.stdout.flush()
                pictures.append(picture)
    if len(pictures) > 1 and len(pictures) * pictures[0].width * pictures[0].height <= LARGEST_GRID:
        sheet = images.grid(pictures, options.count if options.count and len(pictures) > options.count > 1 else None)
        print(images.write_png(sheet, options.out, "grid", {}))


@contextmanager
def enough_memory() -> Iterator[None]:
    """Memory that runs out is told as such; the pictures written before are whole."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise MinisdError("not enough memory", why=str(error).splitlines()[0][:200],
                          remedy="try --batch 1, a smaller --size or --dtype bfloat16", code=RESOURCE) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A folder that cannot be written is told before anything is drawn."""
    try:
        yield
    except OSError as error:
        raise MinisdError("the folder for the pictures cannot be made", str(folder), error.strerror or str(error),
                          "give another one by --out", RESOURCE) from error


if __name__ == "__main__":
    sys.exit(main())
