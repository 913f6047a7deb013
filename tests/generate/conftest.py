"""A tiny model in a folder, and the program run on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_model

from minisd.generate.__main__ import main

Draw = Callable[..., int]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model.folder(tmp_path_factory.mktemp("generate")))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


@pytest.fixture
def draw(model: str, out: Path) -> Draw:
    """The program's exit code."""
    def run(*args: str) -> int:
        return main([*args, "--model", model, "--out", str(out), "--device", "cpu"])
    return run
