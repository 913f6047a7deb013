"""`python -m minisd.train RECIPE.toml --data FOLDER --out FOLDER`: run the stages of a recipe, one after the other."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from minisd.errors import USAGE, MinisdError


@dataclass(frozen=True)
class Options:
    """Train a model as a recipe says. Every run can be killed at any moment and goes on with --resume auto."""

    recipe: Annotated[Path, tyro.conf.Positional]
    """A recipe: a .toml file, or the recipe.json that stands beside an earlier run."""
    data: Path
    """Folder of pictures with metadata.jsonl."""
    out: Path
    """Run folder: a folder per stage with checkpoints, metrics.jsonl and samples, and the model in model/."""
    stage: str = ""
    """Run this stage alone; without it all, in their order."""
    resume: str = "auto"
    """auto: go on from the newest checkpoint that verifies, or start; never: refuse a folder with checkpoints."""
    debug: bool = False
    """Show the traceback of an error."""


def main() -> int:
    options = tyro.cli(Options, prog="python -m minisd.train")
    try:
        run(options)
    except MinisdError as error:
        if options.debug:
            raise
        print(error, file=sys.stderr)
        return error.code
    return 0


def run(options: Options) -> None:
    """Check everything that can be checked without torch, then train."""
    from minisd.schema import read_file
    from minisd.train.config import Recipe

    recipe = read_file(Recipe, options.recipe)
    names = [stage.name for stage in recipe.stages]
    if options.stage and options.stage not in names:
        raise MinisdError(f"no stage {options.stage!r}", str(options.recipe), f"it has {', '.join(names)}",
                          "name one of these", USAGE)
    if options.resume not in ("auto", "never"):
        raise MinisdError(f"--resume {options.resume}", "", "allowed are auto and never", "choose one", USAGE)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1), encoding="utf-8")

    from minisd.train.stages import train_stage
    for name in [options.stage] if options.stage else names:
        train_stage(recipe, recipe.stage(name), options.data, options.out, options.resume)


if __name__ == "__main__":
    sys.exit(main())
