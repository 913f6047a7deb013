"""What is asked for, worked out and checked from the options alone: loading torch and a model takes seconds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minisd.drawing.metadata import Drawn, read_drawn
from minisd.drawing.plan import STANDARD
from minisd.drawing.ranges import SEEDS, STEPS, in_range
from minisd.drawing.tags import EMBEDDING, LORA, Kind, taken_out
from minisd.errors import RESOURCE, USAGE, MinisdError
from minisd.generate import drawings
from minisd.generate.gallery import must_be_ours, preview_name
from minisd.generate.options import BATCH, COUNT, DTYPES, SEED, Options, changed, chosen
from minisd.generate.shelf import Shelf
from minisd.prompt import read
from minisd.samplers.recipes import sampler
from minisd.shares import Share, share

COUNTS, BATCHES = (1, 10_000), (1, 64)
LARGEST_FILE = 1 << 24                            # bytes of a file of prompts


@dataclass(frozen=True)
class Request:
    """Options that have been checked, with what the files they name say."""

    options: Options
    prompts: Sequence[str]
    drawn: Drawn | None                           # the recorded picture of --from-image
    again: bool                                   # it is drawn once more, and no others like it
    share: Share
    shelf: Shelf                                  # of LoRAs
    library: Shelf                                # of embeddings


def asked(options: Options) -> Request:
    """Everything that can be known before torch is loaded; what cannot be drawn is refused."""
    options, us = with_sides(options), share()
    drawn = read_drawn(options.from_image) if options.from_image else None
    again = is_repeat(options)
    if again and not us.alone:
        raise MinisdError("one picture cannot be shared by processes", "--from-image", remedy="start one process",
                          code=USAGE)
    shelf, library = Shelf(LORA, recorded(drawn, options, LORA)), Shelf(EMBEDDING, recorded(drawn, options, EMBEDDING))
    options = options if drawn is None else remembering(options, drawn)
    prompts = read_prompts(options)
    check(options, prompts)
    lend(options, prompts, shelf, library)
    make_folder(options, us)
    return Request(options, prompts, drawn, again, us, shelf, library)


def recorded(drawn: Drawn | None, options: Options, kind: Kind) -> dict[str, str]:
    """The sha256 that names must have, as a recorded picture knows them; none where others are given."""
    given = options.picture.lora if kind == LORA else options.picture.embedding
    if drawn is None or given:
        return {}
    return {one.name: one.sha256 for one in (drawn.drawing.loras if kind == LORA else drawn.drawing.embeddings)}


def questioned(options: Options) -> list[str]:
    """The prompts that are to be explained, once everything given has been checked."""
    prompts = read_prompts(options) if options.questions.explain else []
    if options.questions.sampler_info is not None:
        sampler(options.questions.sampler_info)   # refuses a name that is none
    check(options, prompts)
    return prompts


def with_sides(options: Options) -> Options:
    """--size taken apart into width and height."""
    picture = options.picture
    if picture.size is None:
        return options
    if picture.width or picture.height:
        raise MinisdError("--size beside --width or --height", remedy="give one or the other", code=USAGE)
    sides = picture.size.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
        raise MinisdError(f"--size {picture.size[:30]!r}", remedy="give two numbers of pixels, such as 128x128",
                          code=USAGE)
    return changed(options, {"size": None, "width": int(sides[0]), "height": int(sides[1])})


def is_repeat(options: Options) -> bool:
    """Whether a recorded picture is drawn once more, and no others like it."""
    many = options.many
    return bool(options.from_image) and not (options.prompt or many.prompts or many.count or many.batch)


def remembering(options: Options, drawn: Drawn) -> Options:
    """What is left open, from a recorded picture."""
    what, many = drawn.drawing, options.many
    missing = [f"--{name}" for name, file, needed in (("image", options.start.image, what.start),
                                                      ("mask", options.start.mask, what.mask)) if needed and not file]
    if missing:
        raise MinisdError("the picture was drawn from another one, which it does not hold", str(options.from_image),
                          remedy=f"give it by {' and '.join(missing)}", code=USAGE)
    prompt = options.prompt if options.prompt or many.prompts else (what.prompt,)
    return replace(changed(options, drawings.recorded(what) | chosen(options)), prompt=prompt,
                   dtype=options.dtype or drawn.dtype,
                   many=replace(many, batch=drawn.batch if many.batch is None else many.batch))


def read_prompts(options: Options) -> list[str]:
    """The prompts of the command line, then those of the file."""
    prompts = [*options.prompt, *(lines(options.many.prompts) if options.many.prompts else ())]
    if not prompts:
        raise MinisdError("no prompt", remedy='say what to draw, such as "a red apple"', code=USAGE)
    return prompts


def lines(path: Path) -> list[str]:
    """The lines of a text file that say something."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise ValueError(f"more than {LARGEST_FILE >> 20} MiB")
        return [line for line in text.decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise MinisdError("the prompts cannot be read", str(path), str(error)[:200],
                          "give a text file in UTF-8 with a prompt on each line") from error


def check(options: Options, prompts: Sequence[str]) -> None:
    """Refuse values out of range."""
    many, seed = options.many, options.picture.seed or SEED
    count = COUNT if many.count is None else many.count
    in_range("count", count, *COUNTS)
    in_range("batch", BATCH if many.batch is None else many.batch, *BATCHES)
    in_range("seed", seed, 0, SEEDS - count)
    in_range("preview-every", 1 if options.preview_every is None else options.preview_every, *STEPS)
    if (options.dtype or "auto") not in DTYPES:
        raise MinisdError(f"--dtype {options.dtype}", remedy=f"give {', '.join(DTYPES)}", code=USAGE)
    if len(prompts) * count > COUNTS[1]:
        raise MinisdError(f"{len(prompts)} prompts with --count {count}",
                          remedy=f"ask for at most {COUNTS[1]} pictures", code=USAGE)
    drawings.check(options)
    for prompt in dict.fromkeys([*prompts, options.picture.negative or ""]):
        read(taken_out(prompt)[0]).readings(options.picture.steps or STANDARD.steps)    # refuses absurd weights


def lend(options: Options, prompts: Sequence[str], shelf: Shelf, library: Shelf) -> None:
    """Find the embeddings, and the LoRAs of all prompts; what is not there is told before anything is loaded."""
    library.embeddings(options.lora_dir, options.picture.embedding)
    for tags in dict.fromkeys(tuple(taken_out(prompt)[1]) for prompt in prompts):
        shelf.lend(options.lora_dir, options.picture.lora, tags)


def make_folder(options: Options, us: Share) -> None:
    """A folder that cannot be made is told before anything is drawn, and a file that stands in a preview's way."""
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinisdError("the folder for the pictures cannot be made", str(options.out), error.strerror or str(error),
                          "give another one by --out", RESOURCE) from error
    if options.preview_every is not None:
        must_be_ours(options.out / preview_name(us))
