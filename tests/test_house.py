"""The house keeps its rules: floors, sizes, words and imports of every file (the rules are in house.py)."""

import re
import tomllib
from pathlib import Path

import house

ROOT = Path(__file__).parent.parent
OURS = house.sources(ROOT, *house.PACKAGES)
ALL = OURS + house.sources(ROOT, "benchmarks", "tests")
KNOWN = {source.module for source in OURS}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [re.split(r"[<>=!~\[; ]", name)[0] for name in PROJECT["dependencies"]]
CORE_MODULES = [house.IMPORTED_AS.get(name, name) for name in CORE]


def check(faults):
    found = list(faults)
    assert not found, "\n" + "\n".join(found)


def test_files_and_functions_are_small():
    check(fault for source in ALL for fault in house.sizes(source))


def test_functions_take_few_arguments():
    check(fault for source in OURS for fault in house.signatures(source))


def test_forbidden_words():
    own = house.classes(OURS)
    check(fault for source in OURS for fault in house.words(source, own))


def test_every_import_goes_down_the_floors():
    check(fault for source in OURS for fault in house.floors(source, KNOWN))


def test_no_import_goes_in_a_circle():
    graph = {source.module: {m for _, m in house.imports(source, KNOWN)} & KNOWN for source in OURS}
    assert house.cycle(graph) == []


def test_imports_are_absolute_and_at_the_top():
    check(fault for source in OURS for fault in house.manners(source))


def test_only_declared_libraries_are_imported():
    check(fault for source in OURS for fault in house.foreign(source, CORE_MODULES))


def test_peers_are_imported_for_comparison_only():
    check(fault for source in ALL for fault in house.peers(source))


def test_every_module_says_what_it_is():
    check(fault for source in OURS for fault in house.docstring(source))


def test_core_dependencies_are_the_agreed_ones():
    agreed = ["cattrs", "ftfy", "numpy", "Pillow", "regex", "safetensors", "torch", "tqdm", "tyro"]
    assert sorted(CORE, key=str.lower) == agreed


def test_every_requirement_is_pinned_in_the_constraints():
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
              for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = PROJECT["optional-dependencies"]
    wanted = CORE + [name for extra in ("reference", "dev", "data") for name in extras[extra]]
    assert [name for name in wanted if name.lower() not in pinned] == []


def test_the_tables_name_only_what_exists():
    named = {name for source in OURS for name, _ in house.functions(source.tree.body, source.module)}
    excepted = (*house.MANY_ARGUMENTS, *house.KEYWORDS_PASSED_ON)
    assert [name for name in excepted if name not in named] == []
