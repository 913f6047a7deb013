"""minisd needs nothing but its core dependencies: no peers, no network, and no torch until something is drawn."""

import os
import subprocess
import sys
from pathlib import Path

import house

ROOT = Path(__file__).parent.parent
BLOCKED = ("torchvision", "diffusers", "transformers", "accelerate", "peft", "huggingface_hub", "lightning", "hydra",
           "omegaconf", "pydantic", "xformers", "scipy", "gradio", "fastapi", "einops")
MODULES = sorted({source.module for source in house.sources(ROOT, *house.PACKAGES)})

# Makes the import of what is blocked, and the making of a socket, an error in this process.
ALONE = f"""
import socket, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ImportError(name + " is blocked")

class Blocked(socket.socket):
    def __init__(self, *args, **kwargs):
        raise OSError("sockets are blocked")

sys.meta_path.insert(0, Blocker())
socket.socket = Blocked
"""

IMPORT_ALL = f"""
from importlib import import_module

for name in {MODULES}:
    import_module(name)
"""


DRAW = """
import minisd
from minisd.config import TINY_MODEL
from minisd.store import parts, save

folder = sys.argv[1]
save(folder, TINY_MODEL, {name: build() for name, build in parts(TINY_MODEL).items()})
image, = minisd.load(folder).txt2img("a red apple", steps=2, seed=7)
assert image.size == (64, 64)
"""


def run(program: str, *arguments: str) -> None:
    """Run a program in a fresh Python; its error is the test's."""
    command = [sys.executable, "-c", program, *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # on a busy machine, threads that wait for each other take minutes
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_the_block_blocks():
    run(ALONE + """
for attempt in (lambda: __import__("diffusers.models"), lambda: __import__("scipy"), socket.socket,
                lambda: socket.create_connection(("localhost", 9))):
    try:
        attempt()
    except (ImportError, OSError) as error:
        assert "blocked" in str(error), error
    else:
        raise AssertionError("not blocked")
""")


def test_every_module_is_imported_without_peers_and_sockets():
    run(ALONE + IMPORT_ALL)


def test_a_picture_is_drawn_without_peers_and_sockets(tmp_path):
    run(ALONE + DRAW, str(tmp_path / "tiny"))


def test_importing_the_package_costs_nothing():
    run("""
import sys
before = set(sys.modules)
import minisd
added = {name.split(".")[0] for name in set(sys.modules) - before}
assert added <= {"minisd", *sys.stdlib_module_names}, added
""")


def test_the_face_shows_what_it_promises():
    run(IMPORT_ALL + """
import minisd
assert all(getattr(minisd, name) is not None for name in minisd.__all__)
assert issubclass(minisd.MinisdError, Exception)
try:
    minisd.laod
except AttributeError as error:
    assert "load" in str(error)
""")
