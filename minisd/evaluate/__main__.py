"""`python -m minisd.evaluate MODEL --data FOLDER --out FOLDER`: measure a model and write the report.

`python -m minisd.evaluate fidelity TEACHER STUDENT --data FOLDER` measures how near a student is to its teacher.
`python -m minisd.evaluate samplers MODEL --out FOLDER` draws with every sampler and compares the pictures.
`python -m minisd.evaluate approximations MODEL --out FOLDER` says what drawing faster than exactly costs.
"""

import sys
from collections.abc import Sequence

from minisd.command import Commands, commands
from minisd.evaluate.approximations_options import ApproximationsOptions
from minisd.evaluate.options import FidelityOptions, Options
from minisd.evaluate.samplers_options import SamplersOptions


def shorten(options: ApproximationsOptions) -> None:
    """Check everything that can be checked without torch, then draw."""
    options.check()

    from minisd.evaluate.approximations import compare, lines
    rows, protocol = compare(options)
    print(lines(rows))
    print(f"protocol {protocol['protocol']}")


def contest(options: SamplersOptions) -> None:
    """Check everything that can be checked without torch, then draw."""
    options.check()

    from minisd.evaluate.samplers import compare, lines
    print(lines(compare(options)))


def compare(options: FidelityOptions) -> None:
    from minisd.evaluate.fidelity import fidelity, write
    from minisd.evaluate.figure import table
    found = fidelity(options.teacher, options.student, options.data, options.samples, options.pictures, options.cache)
    print(table(found.figures))
    print(f"protocol {found.protocol['protocol']}")
    if options.out is not None:
        write(found, options.out)


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


COMMANDS: Commands = {"fidelity": (FidelityOptions, compare), "samplers": (SamplersOptions, contest),
                      "approximations": (ApproximationsOptions, shorten)}


def main(args: Sequence[str] | None = None) -> int:
    """The exit code: see `errors`."""
    return commands(Options, "python -m minisd.evaluate", run, COMMANDS, args)


if __name__ == "__main__":
    sys.exit(main())
