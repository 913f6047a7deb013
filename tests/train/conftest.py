"""Eight pictures with captions, a recipe in miniature, and children that may be killed."""

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from tqdm import tqdm

from minisd.errors import MinisdError
from minisd.schema import read_file
from minisd.train.config import Recipe
from minisd.train.interrupts import SIGNALS

tqdm.monitor_interval = 0                         # its thread would be missing in a forked child
HELD_OUT = (2, 5)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch) -> None:
    """Files need not outlive a power cut here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True)
def heard_signals() -> Iterator[None]:
    """As in a terminal: a shell that runs the tests in the background, or nohup, has them ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def draw(path: Path, shape: str, colour: str) -> None:
    picture = Image.new("RGB", (80, 72), "white")
    getattr(ImageDraw.Draw(picture), {"square": "rectangle", "disc": "ellipse"}[shape])((16, 12, 60, 56), fill=colour)
    picture.save(path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of 8 pictures, 2 of them held out."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for n in range(8):
        shape, colour = ("square", "disc")[n % 2], ("red", "blue", "green", "black")[n // 2]
        draw(folder / f"{n}.png", shape, colour)
        rows.append({"file": f"{n}.png", "captions": [f"a {colour} {shape}", f"{shape}, {colour}", colour],
                     "style": ("plain", "round")[n % 2], "concept": colour, "core": n < 6,
                     "split": "holdout" if n in HELD_OUT else "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """All stages, four steps each."""
    return read_file(Recipe, Path(__file__).parent / "tiny.toml")


@pytest.fixture(scope="session")
def changed(recipe) -> Callable[..., Recipe]:
    """The recipe with one stage alone, and its loop changed."""
    def change(stage: str, **train) -> Recipe:
        kept = recipe.stage(stage)
        return replace(recipe, stages=(replace(kept, train=replace(kept.train, **train)),))
    return change


@pytest.fixture(scope="session")
def child() -> Callable[[Callable[[], object]], int]:
    """Runs something in a forked process: an exit code that it returns, else 0, or minus the signal that killed it."""
    def run(work: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                result = work()
                code = result if isinstance(result, int) else 0
            except MinisdError as error:
                print(error, file=sys.stderr)
                code = error.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return run


@pytest.fixture(scope="session")
def ranks(child) -> Callable[..., list[int]]:
    """Exit codes of some processes, one for each piece of work, that find each other as those of torchrun do."""
    def run(*works: Callable[[], object]) -> list[int]:
        pids = []
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        for rank, work in enumerate(works):
            pid = os.fork()
            if pid == 0:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(works)), "LOCAL_RANK": str(rank),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os._exit(child(work) % 256)
            pids.append(pid)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return run
