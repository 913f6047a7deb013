"""`python -m minisd.generate "a red apple"`: what is asked for is checked, then a model is loaded and draws."""

import os
import sys
from collections.abc import Callable, Sequence
from time import perf_counter

from minisd.command import command
from minisd.errors import INTERRUPTED, MinisdError
from minisd.generate.options import Options, Questions


def main(args: Sequence[str] | None = None) -> int:
    """The exit code: see `errors`."""
    return command(Options, "python -m minisd.generate", run, args)


def run(options: Options) -> None:
    """Check all that can be checked, then draw."""
    # Threads that wait by spinning make this twelve times slower beside another busy process; torch reads it once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if options.profile:
            watched(options)
        else:
            way(options)(options)
    except KeyboardInterrupt as stop:
        raise MinisdError("interrupted", str(options.out), "the pictures already there are whole",
                          code=INTERRUPTED) from stop


def watched(options: Options) -> None:
    """The same, and on standard error where the time went."""
    start = perf_counter()
    from minisd.fast.clock import Clock
    with Clock(start) as spent:
        way(options)(options)
    print(spent.table(), file=sys.stderr)


def way(options: Options) -> Callable[[Options], None]:
    """What is asked for."""
    if options.questions != Questions():
        return answers
    return grid if options.many.grid else pictures


def pictures(options: Options) -> None:
    """The pictures of some prompts."""
    from minisd.generate.request import asked
    request = asked(options)
    from minisd.generate.pictures import draw
    draw(request)


def grid(options: Options) -> None:
    """The cells of a grid, and its sheets."""
    from minisd.generate.grid import planned
    plan = planned(options)
    from minisd.generate.sheets import draw
    draw(plan)


def answers(options: Options) -> None:
    """To questions that need no weights, and most of them not even torch."""
    from minisd.generate import request
    prompts = request.questioned(options)
    if options.questions.list_samplers:
        from minisd.generate.names import samplers
        print(samplers())
    if prompts or options.questions.sampler_info is not None:
        from minisd.generate.answers import answer
        print(answer(options, prompts))


if __name__ == "__main__":
    sys.exit(main())
