"""`python -m weights_convert SOURCE TARGET`: checkpoints between layouts; also inspect, verify, diff and parity."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from minisd.command import Commands, commands, shown
from minisd.errors import MinisdError
from weights_convert.lora import program
from weights_convert.lora.program import DTYPES, Action, Dtype, Layout

Prediction = Literal["epsilon", "v", "x0"] | None
PREDICTIONS = arg(metavar="{epsilon,v,x0}")


@dataclass(frozen=True)
class Convert(Action):
    """Convert a checkpoint; it is recognised by its contents. `lora ACTION ...` instead of it is for LoRA files."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """A single file (.safetensors, .ckpt), a diffusers folder, a native folder, or a part alone."""
    target: Annotated[Positional[Path], arg(metavar="TARGET")]
    """What to write; it must not be there yet."""
    to: Layout = None
    """The layout to write."""
    dtype: Dtype = None
    """The precision to write."""
    ema: bool = False
    """Take the EMA copies of a single file; the weights as trained are taken otherwise."""
    prediction: Annotated[Prediction, shown("as the source says"), PREDICTIONS] = None
    """What the UNet predicts; SD2.x single files do not say it."""
    allow_nonfinite: bool = False
    """Write weights that are NaN or infinite all the same."""


@dataclass(frozen=True)
class Inspect(Action):
    """Say what a checkpoint is: family, layout, parts, dtypes, parameters, and what is unusual."""

    source: Annotated[Positional[Path], arg(metavar="FILE")]
    """A file or folder of any layout."""


@dataclass(frozen=True)
class Verify(Inspect):
    """Check a checkpoint: its structure and its values; and say what cannot be proven."""


@dataclass(frozen=True)
class Diff(Action):
    """Compare the tensors of two checkpoints, whatever their layouts: exit code 0 where they are equal, else 1."""

    a: Annotated[Positional[Path], arg(metavar="A")]
    """A file or folder of any layout."""
    b: Annotated[Positional[Path], arg(metavar="B")]
    """Another."""


@dataclass(frozen=True)
class Parity(Action):
    """Run two checkpoints on the same seeded input and compare every layer: exit code 0 if none is over tolerance."""

    a: Annotated[Positional[Path], arg(metavar="A")]
    """A file or folder of any layout; parts alone will do."""
    b: Annotated[Positional[str], arg(metavar="B")]
    """Another; or "diffusers": the installed reference with the weights of A."""
    tolerance: float = 1e-5
    """Largest difference allowed, relative to the largest value of the layer."""
    prediction: Annotated[Prediction, shown("as the sources say"), PREDICTIONS] = None
    """What the UNet predicts; SD2.x single files do not say it."""
    size: int = 8
    """Latents a side."""


def convert(options: Convert) -> None:
    import torch

    from minisd.store import must_fit
    from weights_convert.sources import open_model
    from weights_convert.write import layout_for, lost, write
    to = layout_for(options.target, options.to)
    dtype = getattr(torch, DTYPES[options.dtype]) if options.dtype else None
    model = open_model(options.source, options.prediction, options.ema)
    model.must_be_drawable()
    if model.whole:
        model.must_be_decided()
    must_fit(model)
    for note in (*model.notes, *lost(model, to)):
        print(f"note: {note}")
    write(model, options.target, to, dtype, options.allow_nonfinite)
    print(f"{options.target}: {model.family}, from {model.layout} to {to}")


def inspect(options: Inspect) -> None:
    from weights_convert.looks import report
    print("\n".join(report(options.source)))


def verify(options: Verify) -> None:
    from minisd.store import must_fit
    from weights_convert.looks import faults
    from weights_convert.sources import open_model
    model = open_model(options.source)
    if not model.preset.startswith("sdxl"):
        must_fit(model)
    for line in faults(model):
        print(line)


def diff(options: Diff) -> None:
    from weights_convert.looks import summary
    from weights_convert.sources import open_model
    found = list(summary(open_model(options.a), open_model(options.b)))
    print("\n".join(found) or "equal: every tensor, to the bit")
    if found:
        raise SystemExit(1)


def parity(options: Parity) -> None:
    from minisd.parity import compare
    worst = compare(options.a, options.b, options.prediction, options.size, options.tolerance)
    if worst > options.tolerance:
        raise MinisdError(f"the largest difference is {worst:.3g}", f"{options.a} beside {options.b}",
                          f"more than {options.tolerance:g} relative", code=1)


COMMANDS: Commands = {"inspect": (Inspect, inspect), "verify": (Verify, verify), "diff": (Diff, diff),
                      "parity": (Parity, parity)}


def main(args: Sequence[str] | None = None) -> int:
    """The exit code: see `minisd.errors`."""
    words = list(sys.argv[1:] if args is None else args)
    if words[:1] == ["lora"]:
        return program.main(words[1:])
    return commands(Convert, "python -m weights_convert", convert, COMMANDS, words)


if __name__ == "__main__":
    sys.exit(main())
