"""Programs: every one is in the table, its options are the frozen ones, and asking for help is quick."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest

from weights_convert.lora.program import ACTIONS

ROOT = Path(__file__).parent.parent
FROZEN = Path(__file__).parent / "frozen_options.txt"
MAIN_BLOCK = re.compile(r"""^if __name__ == ["']__main__["']:""", re.MULTILINE)
FOUND = sorted({source.module for source in house.sources(ROOT, *house.PACKAGES) if MAIN_BLOCK.search(source.text)})
# An entry of the help begins with the names of one option: "--steps INT", "-W INT, --width INT", "--a, --no-a".
ENTRY = re.compile(r"^[│|\s]*(-{1,2}[A-Za-z].*?)(?:\s{2,}|$)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])-{1,2}[A-Za-z][\w-]*")
HELP = """
import runpy, sys
sys.argv[1:] = [*{words!r}, "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as done:
    sys.exit("it imports torch, which takes seconds" if "torch" in sys.modules else done.code)
"""


def help_of(program: str) -> str:
    """What `python -m program --help` prints; behind a module's name a program may have those of its commands."""
    # In a wider terminal tyro sets the groups side by side, in a narrow one it breaks long entries.
    env = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    module, *words = program.split()
    command = [sys.executable, "-c", HELP.format(module=module, words=words)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{program} --help failed\n{done.stderr}"
    return done.stdout


def commands_of(module: str) -> list[str]:
    """A program, and each of its commands."""
    table = getattr(importlib.import_module(module), "COMMANDS", {})
    return [module, *(f"{module} {name}" for name in table)]


ASKED = sorted([*(program for module in FOUND for program in commands_of(module)),
                *(f"weights_convert.__main__ lora {name}" for name in ACTIONS)])


def options_of(text: str) -> set[str]:
    """Names of the options in a help text."""
    return {name for entry in ENTRY.findall(text) for name in OPTION.findall(entry)} - {"-h", "--help"}


def frozen() -> dict[str, set[str]]:
    """The promised options of each program and command; a line is a name and one of them, or none."""
    rows = [line.split() for line in FROZEN.read_text().splitlines() if line and not line.startswith("#")]
    found: dict[str, set[str]] = {}
    for words in rows:
        options = {word for word in words if word.startswith("-")}
        found.setdefault(" ".join(word for word in words if word not in options), set()).update(options)
    return found


def test_every_program_is_in_the_table_and_frozen():
    assert [name for name in FOUND if name not in house.PROGRAMS] == [], "add it to PROGRAMS in tests/house.py"
    assert sorted(frozen()) == ASKED, "tests/frozen_options.txt lists exactly the programs that there are"


@pytest.mark.parametrize("program", ASKED)
def test_options_are_the_frozen_ones(program):
    options, promised = options_of(help_of(program)), frozen().get(program, set())
    assert not options - promised, f"{program} has new options: promise them in {FROZEN.name}"
    assert not promised - options, "a promised option is gone"


def test_options_are_read_from_both_kinds_of_help():
    text = """
    ╭─ options ──────────────────────────────────╮
    │ -h, --help        show this help message   │
    │ --all, --no-all   See also --size.         │
    │ -W INT, --width INT                        │
    │     Pixels -- a multiple of 8, or --square │
    ╰────────────────────────────────────────────╯
      --seed {1,2}  the seed
    """
    assert options_of(text) == {"--all", "--no-all", "-W", "--width", "--seed"}
