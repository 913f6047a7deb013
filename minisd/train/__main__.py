"""`python -m minisd.train RECIPE --data FOLDER --out FOLDER`: run the stages of a recipe, one after the other.

`python -m minisd.train data-check FOLDER` looks at every picture and caption beforehand.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from minisd.command import Commands, commands
from minisd.errors import USAGE, MinisdError
from minisd.files import put

SPLITS = ("train", "holdout", "twin")


@dataclass(frozen=True)
class Options:
    """Train a model as a recipe says. Every run can be killed at any moment and goes on with --resume auto."""

    recipe: Annotated[str, Positional, arg(metavar="RECIPE")]
    """subject, style, flaw, differential, emoji; or a .toml file, or the recipe.json beside an earlier run."""
    data: Path
    """Folder of pictures with metadata.jsonl, or with a text file beside each."""
    out: Path
    """Run folder: a folder per stage with checkpoints, metrics.jsonl and samples, and the model in model/."""
    base: str = ""
    """Begin personal stages (lora, dreambooth, ...) from this model instead of the recipe's base."""
    stage: str = ""
    """Run this stage alone; without it all, in their order."""
    resume: str = "auto"
    """auto: from the newest checkpoint that verifies, if any; latest: there must be one; never; or a checkpoint."""
    device: Annotated[str, arg(metavar="auto|cpu|cuda")] = "auto"
    """Where to train."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class DataCheck:
    """Look at every picture and caption of a folder as training would, and say what is broken, changed or lost."""

    folder: Annotated[Path, Positional]
    """Pictures with metadata.jsonl, or with a text file beside each; or tar shards."""
    size: int = 512
    """Pixels a side of what is trained on, or of the square that buckets have the area of."""
    ratio: float = 1.0
    """Largest ratio of the sides of a bucket; 1 = squares only."""
    window: int = 77
    """Tokens of the text encoder's window."""
    debug: bool = False
    """Show the traceback of an error."""


def data_check(options: DataCheck) -> None:
    """Print the findings; a folder with broken pictures or empty captions is a bad one, by its exit code."""
    from minisd.tokenizer import Tokenizer
    from minisd.train.buckets import sizes
    from minisd.train.config import MULTIPLE, DataConfig
    from minisd.train.datacheck import HARMFUL, check, report
    from minisd.train.rows import read_rows

    if options.size < MULTIPLE or options.size % MULTIPLE or not 1 <= options.ratio <= 8:
        raise MinisdError(f"--size {options.size} --ratio {options.ratio}", code=USAGE,
                          remedy=f"give a multiple of {MULTIPLE}, and a ratio of 1 to 8")
    rows = [row for split in SPLITS for row in read_rows(options.folder, DataConfig(), split)]
    found = check(rows, sizes(options.size, MULTIPLE, options.ratio), Tokenizer(window=options.window))
    print(report(found))
    harmful = [heading for heading in HARMFUL if heading in found.files]
    if harmful:
        raise MinisdError(" and ".join(f"{len(found.files[heading])} x {heading}" for heading in harmful),
                          str(options.folder), "training would go on with other pictures in their place",
                          "repair or remove them, if they are many")


def run(options: Options) -> None:
    """Check everything that can be checked without torch, then train."""
    from minisd.schema import read_file
    from minisd.train.config import Recipe
    from minisd.train.experiment import RECIPES, find, is_experiment

    path = find(options.recipe)
    if not path.is_file():
        shipped = sorted(one.stem for one in RECIPES.glob("*.toml") if not is_experiment(one))
        raise MinisdError("no such recipe", options.recipe, f"shipped are {', '.join(shipped)}",
                          "name one of these, or a file")
    recipe = read_file(Recipe, path)
    recipe = replace(recipe, base=options.base or recipe.base)
    names = [stage.name for stage in recipe.stages]
    if options.stage and options.stage not in names:
        raise MinisdError(f"no stage {options.stage!r}", options.recipe, f"it has {', '.join(names)}",
                          "name one of these", USAGE)
    chosen = [options.stage] if options.stage else names
    if options.resume not in ("auto", "latest", "never") and len(chosen) > 1:
        raise MinisdError(f"--resume {options.resume}", "", "a checkpoint belongs to one stage",
                          "name it by --stage, or give auto, latest or never", USAGE)
    if not options.data.is_dir():
        raise MinisdError("no such folder", str(options.data), remedy="give a folder of pictures as --data")
    put(options.out / "recipe.json", json.dumps(asdict(recipe), indent=1))

    from minisd.train.stages import train
    train(recipe, chosen, options.data, options.out, options.resume, options.device)


COMMANDS: Commands = {"data-check": (DataCheck, data_check)}


def main(args: Sequence[str] | None = None) -> int:
    """The exit code: see `errors`."""
    return commands(Options, "python -m minisd.train", run, COMMANDS, args)


if __name__ == "__main__":
    sys.exit(main())
