"""Each rule of the house catches what it forbids, and nothing else."""

from textwrap import dedent

import house
import pytest
from house import Source

KNOWN = {"minisd.unet", "minisd.vae", "minisd.layers", "minisd.samplers.schedule", "minisd.samplers.loop",
         "minisd.pipeline", "minisd.generate", "minisd.train", "minisd.train.__main__", "minisd.train.tasks.vae"}
OWN = {"Ours"}


def source(text, path="minisd/unet.py"):
    return Source(path, dedent(text))


def nested(depth, opener="if x:"):
    """A function with so many blocks within each other."""
    lines = ["def f(x):", *("    " * (i + 1) + opener for i in range(depth)), "    " * (depth + 1) + "pass"]
    return "\n".join(lines)


def with_lines(count):
    """A function with an inner one, of so many lines in all, decorators not counted."""
    return "@d\n@d\ndef f():\n    def g():\n" + "        pass\n" * (count - 2)


# --- sizes ---


@pytest.mark.parametrize("text", [
    nested(4), nested(4, "for i in x:"), nested(4, "with x:"), nested(4, "def g():"), nested(4, "class C:"),
    "class C:\n    " + nested(4).replace("\n", "\n    "),
    "async def f(x):\n async with x:\n  async for i in x:\n   try:\n    while x: pass\n   finally: pass",
    "def f(x):\n if x:\n  if x:\n   if x: pass\n   else:\n    if x: pass",
    "def f(x):\n match x:\n  case 1:\n   if x:\n    if x:\n     if x: pass",
])
def test_deep_nesting_is_a_fault(text):
    assert [fault for fault in house.sizes(source(text)) if "nested" in fault]


@pytest.mark.parametrize("text", [
    nested(3), nested(3, "def g():"), "if x:\n if x:\n  if x:\n   if x:\n    y = 1",
    "def f(x):\n if x: pass\n elif x: pass\n elif x: pass\n elif x: pass\n elif x: pass",
    "def f(x):\n if x:\n  if x:\n   if x: pass\n   elif x: pass\n   else: pass",
    "class C:\n class D:\n  def f(self, x):\n   for i in x:\n    for j in i:\n     if j: pass",
    "def f(x):\n return [c for a in x for b in a for c in b if c if b]",
])
def test_shallow_nesting_is_none(text):
    assert not list(house.sizes(source(text)))


def test_a_nest_is_reported_once_and_at_its_line():
    assert list(house.sizes(source(nested(6)))) == ["minisd/unet.py:5: nested deeper than 3"]


def test_a_function_counts_the_lines_of_those_within_and_not_its_decorators():
    assert not list(house.sizes(source(with_lines(60))))
    assert list(house.sizes(source(with_lines(61)))) == ["minisd/unet.py:3: minisd.unet.f has 61 lines: at most 60"]
    assert len(list(house.sizes(source(with_lines(62))))) == 2  # the inner one is too long as well


def test_arguments_are_counted_without_self():
    assert not list(house.signatures(source("class C:\n    def f(self, a, b, c, /, d, *, e, f, g): pass")))
    assert list(house.signatures(source("def f(a, b, c, /, d, *e, f, g, h): pass")))


@pytest.mark.parametrize("path, lines, faults", [
    ("minisd/unet.py", 400, 0), ("minisd/unet.py", 401, 1), ("minisd/utils.py", 1, 1), ("tests/common.py", 1, 1)])
def test_size_and_name_of_a_file(path, lines, faults):
    assert len(list(house.sizes(Source(path, "x = 1\n" * lines)))) == faults


# --- words ---


@pytest.mark.parametrize("text", [
    "hasattr(x, 'y')", "getattr(x, 'y')", "getattr(x, 'y', None)", "isinstance(x, Ours)",
    "isinstance(x, (int, m.Ours))", "isinstance(x, int | Ours)", "issubclass(x, Ours)",
    "match x:\n  case Ours(): pass", "def f(**kw): pass",
    "class C:\n  def f(self, a, **options): pass", "torch.load(path)", "from torch import load", "import pickle",
    "import yaml as y", "from pickle import loads", "exec(x)", "eval(x)", "__import__(x)", "if 'name' in self: pass",
    "type(x).__name__ == 'Linear'", "x.__class__.__name__ in ('A', 'B')", "x = 1  # TO" "DO later", "# FIX" "ME",
])
def test_forbidden_words_are_faults(text):
    assert list(house.words(source(text), OWN))


@pytest.mark.parametrize("text", [
    "isinstance(x, nn.Linear)", "getattr(x, name)", "model.eval()", "torch.save", "'x' in self.names", "f(**options)",
    "if __name__ == '__main__': pass", "# TO" "DO (issue 7)", "# TO" "DO #7: later", "match x:\n  case int(): pass",
    "json.load(file)", "from safetensors import torch",
])
def test_other_words_are_none(text):
    assert not list(house.words(source(text), OWN))


# --- imports ---


@pytest.mark.parametrize("path, text", [
    ("minisd/unet.py", "from minisd.samplers.loop import sample"),      # a model never knows samplers
    ("minisd/samplers/loop.py", "from minisd import unet"),             # nor a sampler models
    ("minisd/config.py", "import minisd.layers"),
    ("minisd/layers.py", "def f():\n    from minisd import pipeline"),
    ("weights_convert/read.py", "from minisd.unet import UNet"),
    ("minisd/pipeline.py", "import minisd.generate"),
    ("minisd/train/loop.py", "from minisd.train.tasks import vae"),
    ("minisd/train/loop.py", "from minisd import vae"),
    ("minisd/generate.py", "from minisd.distill import main"),
    ("minisd/unheard_of.py", ""),
    ("minisd/__init__.py", "from minisd.pipeline import load"),
    ("minisd/train/tasks/vae.py", "from minisd.train import __main__"),
])
def test_upward_imports_are_faults(path, text):
    assert list(house.floors(source(text, path), KNOWN))


@pytest.mark.parametrize("path, text", [
    ("minisd/controlnet.py", "from minisd.unet import Encoder"),
    ("minisd/config.py", "from minisd.samplers.schedule import NoiseTable"),
    ("minisd/samplers/loop.py", "from minisd.samplers import schedule"),
    ("minisd/train/__main__.py", "from minisd import train"),
    ("minisd/generate.py", "from minisd import pipeline"),
    ("minisd/pipeline.py", "import weights_convert.detect, torch"),
    ("minisd/__init__.py", "if TYPE_CHECKING:\n    from minisd.pipeline import StableDiffusion"),
])
def test_downward_imports_are_none(path, text):
    assert not list(house.floors(source(text, path), KNOWN))


def test_circles_are_found_however_long():
    assert house.cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c", "b"]
    assert house.cycle({"a": {"a"}}) == ["a", "a"]
    assert house.cycle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def foreign(source):
    return house.foreign(source, ["torch"])


@pytest.mark.parametrize("rule, path, text", [
    (house.manners, "minisd/unet.py", "from . import layers"),
    (house.manners, "minisd/unet.py", "def f():\n    import torch"),
    (house.manners, "minisd/samplers/__init__.py", "from minisd.samplers.loop import sample"),
    (house.docstring, "minisd/unet.py", "x = 1"),
    (house.peers, "minisd/unet.py", "from transformers import CLIPModel"),
    (house.peers, "tests/test_unet.py", "import diffusers.models"),
    (house.peers, "tests/test_unet.py", "pytest.importorskip('peft')"),
    (foreign, "minisd/unet.py", "import scipy.linalg"),
    (foreign, "minisd/unet.py", "import resvg_py"),
])
def test_faulty_imports(rule, path, text):
    assert list(rule(source(text, path)))


@pytest.mark.parametrize("rule, path, text", [
    (house.manners, "minisd/generate/__main__.py", "def main():\n    import torch"),
    (house.manners, "minisd/recipes/emoji_pictures.py", "def f():\n    from fontTools.ttLib import TTFont"),
    (house.manners, "minisd/train/__init__.py", "import torch"),
    (house.peers, "tests/reference/test_unet.py", "import peft"),
    (foreign, "minisd/unet.py", "import torch.nn, math, minisd.layers"),
])
def test_imports_in_their_places(rule, path, text):
    assert not list(rule(source(text, path)))
