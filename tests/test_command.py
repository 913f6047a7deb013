"""Command lines: what cannot be understood and what fails is said in a few plain lines, with the right exit code."""

import logging
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import pytest

from minisd.command import command, given, shown
from minisd.errors import NUMERICAL, MinisdError


@dataclass(frozen=True)
class Options:
    """A program for tests."""

    steps: Annotated[int | None, given(int, "1..9"), shown("the model's own", "--turns", "-t")] = None
    """How many."""
    scale: Annotated[float | None, given(float, "X"), shown()] = None
    """How much."""
    words: Annotated[str | None, given(str, "TEXT"), shown()] = None
    """What."""
    debug: bool = False
    """Show the traceback."""


def run_with(args: list[str]) -> Options:
    seen: list[Options] = []
    assert command(Options, "program", seen.append, args) == 0
    return seen[0]


def test_values_are_read() -> None:
    assert run_with([]) == Options()
    assert run_with(["-t", "3", "--scale", "2", "--words", "None"]) == Options(3, 2.0, "None")
    assert run_with(["--turns", "-3", "--words", "-3", "--debug"]) == Options(-3, None, "-3", True)


def test_help_names_values_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command(Options, "program", print, ["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert all(words in text for words in ("--steps 1..9", "--turns", "the model's own", "How much."))
    assert "None" not in text


@pytest.mark.parametrize(("args", "told"), [
    (["--steps", "x"], "'x' is not a whole number"), (["--steps", "1.5"], "--steps"), (["--steps"], "--steps"),
    (["--scale", "much"], "'much' is not a number"), (["--stepz", "3"], "--stepz"), (["more"], "more")])
def test_what_cannot_be_understood(args: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command(Options, "program", print, args)
    said = capsys.readouterr()
    assert end.value.code == 2 and told in said.err and "program --help" in said.err
    assert said.out == "" and "│" not in said.err and len(said.err.splitlines()) <= 6


@pytest.mark.parametrize(("error", "code", "told"), [
    (MinisdError("what", "where", "why", "remedy", NUMERICAL), NUMERICAL,
     "what\n  where: where\n  why: why\n  do: remedy\n"),
    (MinisdError("w\n" * 9), 3, "w\n" * 6), (ValueError("one\ntwo"), 1, "unforeseen ValueError: one\n  do: --debug"),
    (KeyboardInterrupt(), 130, "interrupted\n"), (MemoryError(), 1, "unforeseen MemoryError")])
def test_errors_are_told_without_a_traceback(error: BaseException, code: int, told: str,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Options) -> None:
        raise error

    assert command(Options, "program", fail, []) == code
    said = capsys.readouterr().err
    assert said.startswith(told) and len(said.splitlines()) <= 6


@pytest.mark.parametrize("error", [MinisdError("what"), ValueError("what")])
def test_debug_shows_the_traceback(error: Exception) -> None:
    def fail(_: Options) -> None:
        raise error

    with pytest.raises(type(error), match="what"):
        command(Options, "program", fail, ["--debug"])


def test_a_note_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def note(_: Options) -> None:
        for n in (1, 1, 2):
            logging.getLogger("minisd.text").warning("note %d", n)

    for _ in range(2):
        command(Options, "program", note, [])
        assert capsys.readouterr().err == "note 1\nnote 2\n"


@pytest.mark.parametrize("args", [["--help"], ["--list-samplers"]])
def test_a_reader_that_goes_away_is_no_error(args):
    """As `head` does once it has its lines."""
    program = [sys.executable, "-m", "minisd.generate", *args]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141
