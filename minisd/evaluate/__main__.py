"""`python -m minisd.evaluate MODEL --data FOLDER --out FOLDER`: measure a model and write the report."""

import sys
from collections.abc import Sequence

from minisd.command import command
from minisd.evaluate.options import Options


def main(args: Sequence[str] | None = None) -> int:
    """The exit code: see `errors`."""
    return command(Options, "python -m minisd.evaluate", run, args)


def run(options: Options) -> None:
    """Check everything that can be checked without torch, then evaluate."""
    from minisd.schema import read_file
    from minisd.train.config import Recipe

    recipe = read_file(Recipe, options.recipe) if options.recipe else None
    options.check()

    from minisd.evaluate.figure import table
    from minisd.evaluate.report import evaluate
    print(table(evaluate(options, recipe).figures))
    if recipe is None or not recipe.preview.prompts:
        print("no contact sheet: name a --recipe that has preview prompts")


if __name__ == "__main__":
    sys.exit(main())
