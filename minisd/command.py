"""Command lines made from dataclasses of options: parsing, errors in a few lines, exit codes."""

import inspect
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, arg
from tyro.constructors import PrimitiveConstructorSpec

from minisd.errors import USAGE, MinisdError
from minisd.shares import share

INTERRUPT = 130                                   # what shells expect of a program that was interrupted
UNREAD = 141                                      # and of one whose output is not read to its end
UNFORESEEN = 1
SHOWN_LINES, LONGEST_LINE = 6, 500
FRAME = "╭╮╰╯│─ "


class WithDebug(Protocol):
    """Options that can ask for tracebacks."""

    @property
    def debug(self) -> bool: ...


Options = TypeVar("Options", bound=WithDebug)
Commands = Mapping[str, tuple[type[Any], Callable[[Any], None]]]    # a program's others, by the word that names them
T = TypeVar("T", int, float, str, Path)


def given(kind: type[T], metavar: str) -> PrimitiveConstructorSpec[T | None]:
    """For an option that may be left out, which is None: what is given is one value of this kind, even "None"."""
    return PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=lambda words: understood(kind, words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)])


def understood(kind: type[T], word: str) -> T:
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{word[:40]!r} is not a {'whole number' if kind is int else 'number'}") from None


def shown(default: str = "", *aliases: str) -> Any:
    """What the help says of an option's default, where it is not the dataclass's; and the option's other names."""
    return arg(aliases=aliases, help_behavior_hint=f"(default: {default})" if default else "")


def commands(options: type[Options], program: str, run: Callable[[Options], None], others: Commands,
             args: Sequence[str] | None = None) -> int:
    """The exit code of the command that the first word names, else of the program's main one, whose help names all."""
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] in others:
        other, work = others[words[0]]
        return command(other, f"{program} {words[0]}", work, words[1:])
    return command(options, program, run, words, f"Other commands, each with its own --help: {', '.join(others)}.")


def command(options: type[Options], program: str, run: Callable[[Options], None],
            args: Sequence[str] | None = None, more: str = "") -> int:
    """Parse, run, and return the exit code; a traceback is shown with --debug only.

    `more` is said in the help beside the options' own docstring.
    """
    try:
        chosen = parse(options, program, args, more)
    except BrokenPipeError:
        return unread()
    try:
        with notes():
            run(chosen)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        return unread()
    except KeyboardInterrupt:
        return failed("interrupted", INTERRUPT)
    except MinisdError as error:
        if chosen.debug:
            raise
        return failed(str(error), error.code)
    except Exception as error:
        if chosen.debug:
            raise
        why = "".join(str(error).splitlines()[:1])
        return failed(f"unforeseen {type(error).__name__}: {why}\n  do: --debug shows where it happened", UNFORESEEN)


def unread() -> int:
    """Whoever read the output has gone, as `head` does: no fault of anybody's, and nobody is there to be told."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # or Python's own last flush would complain
    return UNREAD


class Once(logging.Filter):
    """Lets each message through only once: what is true of one batch is true of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.getMessage() not in self.seen
        self.seen.add(record.getMessage())
        return new


@contextmanager
def notes() -> Iterator[None]:
    """minisd's notes and warnings go to the standard error, as plain lines."""
    handler, log = logging.StreamHandler(), logging.getLogger("minisd")
    handler.setFormatter(logging.Formatter(speaker() + "%(message)s"))
    handler.addFilter(Once())
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def parse(options: type[Options], program: str, args: Sequence[str] | None, more: str = "") -> Options:
    """The options; or the end of the program, after --help or a few plain lines on what cannot be understood."""
    boxed, said = io.StringIO(), "\n\n".join(filter(None, (inspect.getdoc(options), more)))
    try:
        with redirect_stderr(boxed):
            return tyro.cli(options, prog=program, description=said, args=args, config=(FlagCreatePairsOff,))
    except SystemExit as end:
        sys.stdout.flush()
        raise SystemExit(failed(unboxed(boxed.getvalue()), USAGE) if end.code else 0) from None


def unboxed(text: str) -> str:
    """tyro's framed error as plain lines: what is wrong, what may have been meant, and where to find help."""
    lines = [line.strip(FRAME) for line in text.splitlines()]
    lines = [line for line in lines if line][1:]                         # the first is the frame's title
    wrong = list(takewhile(lambda line: not line.startswith("Argument helptext"), lines[:-1]))
    return "\n".join([*wrong[:SHOWN_LINES - 1], *lines[-1:]])


def failed(text: str, code: int) -> int:
    """Say it in at most six lines of bearable length; the code is handed through."""
    for line in (speaker() + text).splitlines()[:SHOWN_LINES]:
        print(line[:LONGEST_LINE], file=sys.stderr)
    return code


def speaker() -> str:
    """Which of several processes speaks, before what it says."""
    try:
        return share().name
    except MinisdError:                           # told by whoever shares; others may be told all the same
        return ""
