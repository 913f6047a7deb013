"""`python -m minisd.distill RECIPE`: cut blocks out of a UNet, and train what is left until it draws like its teacher.

`python -m minisd.distill sensitivity` says what to cut, `python -m minisd.distill export` takes a checkpoint home.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from minisd.command import Commands, commands, given, shown
from minisd.errors import USAGE, MinisdError
from minisd.files import put

OWN_CAPTIONS = "(default: the captions that come with the teacher)"


@dataclass(frozen=True)
class Options:
    """Distil a student as a recipe says. Every run can be killed at any moment and goes on with --resume auto."""

    recipe: Annotated[str, Positional, arg(metavar="RECIPE")]
    """exp0001, exp0002, bk-base, bk-small, bk-tiny; or a .toml file, or the recipe.json beside an earlier run."""
    data: Annotated[Path | None, arg(metavar="FOLDER|FILE", help_behavior_hint=OWN_CAPTIONS)] = None
    """Pictures with captions; or a text file of captions, whose pictures the teacher draws itself."""
    teacher: Annotated[str | None, given(str, "MODEL"), shown("the recipe's, else emoji")] = None
    """An embedded model's name, a model folder, or a checkpoint file."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/NAME)")] = None
    """Run folder: checkpoints, metrics.jsonl, samples, report.html, and at the end the student in model/."""
    cache: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: beside --out)")] = None
    """Latents and text states that were computed once; runs share them."""
    start: Annotated[str | None, given(str, "RUN"), shown("the recipe's")] = None
    """An earlier run or one of its checkpoints whose averaged weights the student begins with."""
    max_steps: Annotated[int | None, given(int, "N"), shown("the recipe's steps")] = None
    """End after so many updates."""
    resume: str = "auto"
    """auto: from the newest checkpoint that verifies, if any; latest: there must be one; never; or a checkpoint."""
    device: Annotated[str, arg(metavar="auto|cpu|cuda")] = "auto"
    """Where to train; under torchrun each rank has its own card."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Sensitivity:
    """Take each removable block out of a teacher alone, untrained, and say what it saves and what it costs."""

    data: Annotated[Path | None, arg(metavar="FOLDER|FILE", help_behavior_hint=OWN_CAPTIONS)] = None
    """Pictures with captions, the held-out ones where there are any; or captions, whose pictures the teacher draws."""
    teacher: Annotated[str, arg(metavar="MODEL")] = "emoji"
    """An embedded model's name, a model folder, or a checkpoint file."""
    budget: Annotated[float | None, given(float, "0..1"), shown("no proposal")] = None
    """Propose the cuts that leave at most this share of the parameters at the least error."""
    samples: int = 64
    """Pictures that the error is measured on."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Write the table as JSON, too."""
    cache: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/cache")
    """Latents and text states that were computed once."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Export:
    """Take a checkpoint of a run home as a model folder, before the run has ended."""

    checkpoint: Annotated[Path, Positional, arg(metavar="CHECKPOINT")]
    """A run's checkpoint-N folder."""
    target: Annotated[Path, Positional, arg(metavar="FOLDER")]
    """A new model folder."""
    raw: bool = False
    """The weights as they were trained, not their average."""
    debug: bool = False
    """Show the traceback of an error."""


def run(options: Options) -> None:
    """Check everything that can be checked without torch, then distil."""
    from minisd.train.experiment import read

    experiment = read(options.recipe, options.teacher)
    if options.max_steps is not None:
        if options.max_steps < 1:
            raise MinisdError(f"--max-steps {options.max_steps}", remedy="give at least 1", code=USAGE)
        experiment = replace(experiment, train=replace(experiment.train, steps=options.max_steps))
    if options.start is not None:
        experiment = replace(experiment, student=replace(experiment.student, start=options.start))
    if options.data is not None and not options.data.exists():
        raise MinisdError("no such folder", str(options.data), remedy="give a folder of pictures as --data")
    out = options.out or Path("runs") / experiment.name

    from minisd.train.captions import beside
    from minisd.train.distillation import Place, distill
    data, cache = options.data or beside(experiment.teacher), options.cache or out.parent / "cache"
    distill(experiment, Place(data, out, cache, options.device), options.resume)


def sensitivity(options: Sensitivity) -> None:
    if options.budget is not None and not 0 < options.budget < 1:
        raise MinisdError(f"--budget {options.budget}", remedy="give a share of the parameters, 0 to 1", code=USAGE)

    from minisd.evaluate.sensitivity import propose, survey, table
    from minisd.train.captions import beside
    found = survey(options.teacher, options.data or beside(options.teacher), options.samples, options.cache)
    print(table(found))
    if options.budget is not None:
        print(propose(found, options.budget))
    if options.out is not None:
        put(options.out, json.dumps(asdict(found), indent=1) + "\n")


def export(options: Export) -> None:
    from minisd.train.distillation import take_home
    print(take_home(options.checkpoint, options.target, options.raw))


COMMANDS: Commands = {"sensitivity": (Sensitivity, sensitivity), "export": (Export, export)}


def main(args: Sequence[str] | None = None) -> int:
    """The exit code: see `errors`. Ranks after the first say nothing of their progress."""
    if int(os.environ.get("RANK", "0")):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return commands(Options, "python -m minisd.distill", run, COMMANDS, args)


if __name__ == "__main__":
    sys.exit(main())
