"""`python -m weights_convert lora ACTION ...`: LoRA files between dialects, into checkpoints and out, and summed."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from minisd.command import command, given, shown
from minisd.errors import USAGE, MinisdError

if TYPE_CHECKING:                                 # --help must be quick: torch is not needed for it
    from weights_convert.lora.adapter import Adapter, Entry, Place
    from weights_convert.lora.algebra import Kept

PROGRAM = "python -m weights_convert lora"
Dialect = Literal["kohya", "diffusers", "diffusers-old", "peft", "cloneofsimo"]
Source = Annotated[Positional[Path], arg(metavar="LORA")]
Target = Annotated[Positional[Path], arg(metavar="TARGET")]
Layout = Annotated[Literal["native", "ldm", "diffusers"] | None, shown("ldm for *.safetensors, else native"),
                   arg(metavar="{native,ldm,diffusers}")]
Dtype = Annotated[Literal["fp16", "bf16", "fp32"] | None, shown("as it is"), arg(metavar="{fp16,bf16,fp32}")]
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Action:
    """What all commands have."""

    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Convert(Action):
    """Write a LoRA in another dialect; kohya's is the one that most programs read."""

    source: Source
    """A .safetensors, .ckpt or .pt file, or PEFT's folder."""
    target: Target
    """What to write; it must not be there yet."""
    to: Dialect = "kohya"
    """Names and layout to write."""
    dtype: Dtype = None
    """The precision to write."""


@dataclass(frozen=True)
class Inspect(Action):
    """Say what a LoRA is: dialect, family, ranks, alphas, and which parts it touches."""

    source: Source
    """A .safetensors, .ckpt or .pt file, or PEFT's folder."""


@dataclass(frozen=True)
class Merge(Action):
    """Add LoRAs to a checkpoint's weights for good."""

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    """A checkpoint file or a folder."""
    target: Target
    """What to write; it must not be there yet."""
    loras: Annotated[Positional[tuple[str, ...]], arg(metavar="LORA[:STRENGTH]", help_behavior_hint="(at least one)")]
    """Each with a strength behind a colon, 1 where there is none."""
    to: Layout = None
    """The layout to write."""


@dataclass(frozen=True)
class Extract(Action):
    """The low-rank difference of two checkpoints of one family, as a LoRA: BEFORE plus it is nearly AFTER."""

    before: Annotated[Positional[Path], arg(metavar="BEFORE")]
    """The checkpoint that was trained on."""
    after: Annotated[Positional[Path], arg(metavar="AFTER")]
    """What became of it."""
    target: Target
    """What to write; it must not be there yet."""
    rank: Annotated[int | None, given(int, "N"), shown("32")] = 32
    """At most so many singular values of each module."""
    energy: Annotated[float | None, given(float, "SHARE"), shown("1")] = None
    """No more than make up this share of the squared singular values, such as 0.95."""


@dataclass(frozen=True)
class Resize(Action):
    """Bring a LoRA, LoHa or LoKr to a plain LoRA of another rank."""

    source: Source
    """A .safetensors, .ckpt or .pt file, or PEFT's folder."""
    target: Target
    """What to write; it must not be there yet."""
    rank: Annotated[int | None, given(int, "N"), shown("all that counts")] = None
    """At most so many singular values of each module."""
    energy: Annotated[float | None, given(float, "SHARE"), shown("1")] = None
    """No more than make up this share of the squared singular values, such as 0.95."""


@dataclass(frozen=True)
class Subtract(Action):
    """A minus B, as one LoRA whose rank is the sum of theirs; resize it to fewer."""

    a: Annotated[Positional[Path], arg(metavar="A")]
    """A LoRA."""
    b: Annotated[Positional[Path], arg(metavar="B")]
    """What is taken away from it."""
    target: Target
    """What to write; it must not be there yet."""


@dataclass(frozen=True)
class Average(Action):
    """The mean of several LoRAs, as one whose rank is the sum of theirs; resize it to fewer."""

    target: Target
    """What to write; it must not be there yet."""
    loras: Annotated[Positional[tuple[Path, ...]], arg(metavar="LORA", help_behavior_hint="(at least one)")]
    """The files."""


def convert(options: Convert) -> None:
    import torch

    from weights_convert.lora.read import read_adapter
    from weights_convert.lora.write import write_adapter
    from weights_convert.write import must_be_named
    must_be_named(options.target, options.to, options.to != "peft")
    adapter = read_adapter(options.source)
    dtype = getattr(torch, DTYPES[options.dtype]) if options.dtype else None
    write_adapter(adapter, options.target, options.to, dtype)
    print(f"{options.target}: {len(adapter.entries)} modules, {options.to}, from {adapter.dialect}")
    if options.to == "peft":
        tell_words(options.source, adapter)


def tell_words(source: Path, adapter: "Adapter") -> None:
    """Words that a LoRA brings along and that stay behind: a result that has no place for them says so."""
    from weights_convert.embedding import bundled
    if words := bundled(adapter.embeddings, str(source)):
        print(f"  note: words that {source} brings along stay behind: {', '.join(ascii(word.name) for word in words)}")


def inspect(options: Inspect) -> None:
    from weights_convert.embedding import bundled
    from weights_convert.lora.names import FAMILIES
    from weights_convert.lora.read import read_adapter
    adapter = read_adapter(options.source)
    family = next((name for name, cfg in FAMILIES.items() if cfg == adapter.cfg), "a model of its own")
    print(f"{options.source}: a LoRA for {family}, in {adapter.dialect}'s names")
    for part in adapter.parts():
        entries = adapter.of(part).values()
        print(f"  {part}: {len(entries)} modules; kind {counted(one.kind for one in entries)}; rank "
              f"{counted(one.rank for one in entries)}; alpha "
              f"{counted('as the rank' if one.alpha is None else f'{one.alpha:g}' for one in entries)}")
    for word in bundled(adapter.embeddings, str(options.source)):
        sizes = " and ".join(f"{len(one)} vectors of {one.shape[1]} numbers" for one in word.vectors.values())
        print(f"  the word {word.name!a}: {sizes}")
    for key in sorted(adapter.metadata)[:20]:
        print(f"  {ascii(key)[1:-1]}: {ascii(adapter.metadata[key])[1:-1][:80]}")
    for note in adapter.notes:
        print(f"  note: {note}")


def counted(values: Any) -> str:
    """Each value, and how often where there are several."""
    found = Counter(map(str, values))
    return ", ".join(value if len(found) == 1 else f"{value} ({n})" for value, n in found.most_common(5))


def merge(options: Merge) -> None:
    from weights_convert.lora.algebra import merged
    from weights_convert.lora.read import read_adapter
    from weights_convert.sources import open_model
    from weights_convert.write import layout_for, write
    if not options.loras:
        raise MinisdError("no LoRAs to merge", remedy="give files, each with :STRENGTH behind it or not", code=USAGE)
    to = layout_for(options.target, options.to)
    model = open_model(options.model)
    parts = {name: replace(part, dialect="ours", tensors=part.ours()) for name, part in model.parts.items()}
    for path, strength in map(weighed, options.loras):
        adapter = read_adapter(path, model.cfg)
        absent = [part for part in adapter.parts() if part not in parts]
        if absent:
            raise MinisdError(f"the checkpoint has no {', '.join(absent)}", str(options.model), code=USAGE)
        for name in adapter.parts():
            parts[name] = replace(parts[name], tensors=merged(parts[name].tensors, adapter.of(name), strength))
        print(f"{path} x {strength:g}: {len(adapter.entries)} modules")
        tell_words(path, adapter)
    write(replace(model, parts=parts), options.target, to)
    print(f"{options.target}: {model.family}, {to}")


def weighed(given: str) -> tuple[Path, float]:
    """A file and a strength, from FILE:STRENGTH or FILE."""
    name, colon, strength = given.rpartition(":")
    if not colon or Path(given).exists():
        return Path(given), 1.0
    try:
        value = float(strength)
    except ValueError:
        return Path(given), 1.0
    if not abs(value) < 1000:
        raise MinisdError(f"a strength of {strength}", given, remedy="give a number such as 0.8", code=USAGE)
    return Path(name), value


def extract(options: Extract) -> None:
    from weights_convert.looks import told
    from weights_convert.lora.adapter import Adapter
    from weights_convert.lora.algebra import Truncation, extracted
    from weights_convert.sources import open_model
    how = Truncation(options.rank, options.energy)
    before, after = open_model(options.before), open_model(options.after)
    if before.cfg.unet != after.cfg.unet or before.cfg.text != after.cfg.text:
        raise MinisdError("the checkpoints are of different shapes", f"{options.before} and {options.after}",
                          f"{before.family}, UNet with {told(before.cfg.unet)}; and {after.family}, UNet with "
                          f"{told(after.cfg.unet)}", code=USAGE)
    entries: dict[Place, Entry] = {}
    kept: dict[Place, Kept] = {}
    for name in ("unet", "text", "text_2"):
        if name in before.parts and name in after.parts:
            found = extracted(before.parts[name].ours(), after.parts[name].ours(), name, before.cfg, how)
            entries |= found[0]
            kept |= found[1]
    if not entries:
        raise MinisdError("the checkpoints have the same weights", f"{options.before} and {options.after}", code=USAGE)
    save(Adapter(entries, before.cfg), options.target, kept)


def resize(options: Resize) -> None:
    from weights_convert.lora.algebra import Truncation, resized
    from weights_convert.lora.read import read_adapter
    adapter, kept = resized(read_adapter(options.source), Truncation(options.rank, options.energy))
    save(adapter, options.target, kept)


def subtract(options: Subtract) -> None:
    joined([options.a, options.b], [1.0, -1.0], options.target)


def average(options: Average) -> None:
    if not options.loras:
        raise MinisdError("no LoRAs to average", code=USAGE)
    joined(options.loras, [1 / len(options.loras)] * len(options.loras), options.target)


def joined(files: Sequence[Path], shares: Sequence[float], target: Path) -> None:
    """Write the sum of LoRAs in these shares."""
    from weights_convert.lora.algebra import combined
    from weights_convert.lora.read import read_adapter
    adapters = [read_adapter(file) for file in files]
    save(combined(adapters, list(shares)), target)
    for file, adapter in zip(files, adapters, strict=True):
        tell_words(file, adapter)


def save(adapter: "Adapter", target: Path, kept: "dict[Place, Kept] | None" = None) -> None:
    """Write in kohya's names, and say how large it is and what a truncation has left out."""
    from weights_convert.lora.write import write_adapter
    from weights_convert.write import must_be_named
    must_be_named(target, "kohya", True)
    write_adapter(adapter, target)
    ranks = counted(entry.rank for entry in adapter.entries.values())
    print(f"{target}: {len(adapter.entries)} modules of rank {ranks}")
    if kept:
        least, mean = min(one.energy for one in kept.values()), sum(one.energy for one in kept.values()) / len(kept)
        print(f"  kept of the energy: {mean:.1%} on average, {least:.1%} at the least")


ACTIONS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "convert": (Convert, convert), "inspect": (Inspect, inspect), "merge": (Merge, merge),
    "extract": (Extract, extract), "resize": (Resize, resize), "subtract": (Subtract, subtract),
    "average": (Average, average)}


def main(args: Sequence[str]) -> int:
    """The exit code: see `minisd.errors`."""
    if args and args[0] in ACTIONS:
        options, run = ACTIONS[args[0]]
        return command(options, f"{PROGRAM} {args[0]}", run, args[1:])
    print(f"usage: {PROGRAM} ACTION ...; each has its own --help")
    for name, (options, _) in ACTIONS.items():
        print(f"  {name:<9} {' '.join((options.__doc__ or '').split())}")
    return 0 if args[:1] in (["--help"], ["-h"]) else USAGE
