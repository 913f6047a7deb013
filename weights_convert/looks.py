"""Looking at checkpoints: what one is, what is wrong with it, and in what two differ."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minisd.errors import NUMERICAL, MinisdError
from weights_convert.model import Model
from weights_convert.sources import open_model
from weights_convert.tables.unet import LABELLED
from weights_convert.write import fingerprint, wide

KNOWN = {  # sha256 of files as their makers published them
    "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa": "SD1.5, v1-5-pruned-emaonly.safetensors",
    "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516": "SD1.5, v1-5-pruned-emaonly.ckpt",
    "c6bbc15e3224e6973459ba78de4998b80b50112b0ae5b5c67113d56b4e366b19": "SD1.5 inpainting, sd-v1-5-inpainting.ckpt",
    "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556": "SD1.4, sd-v1-4.ckpt",
}
SHOWN = 10
NAMES = {"ours": "minisd's", "hf": "transformers'", "hf-bare": "transformers' bare", "diffusers": "diffusers'",
         LABELLED: "diffusers'", "diffusers-2022": "diffusers' of 2022", "ldm": "LDM's", "openclip": "OpenCLIP's"}


def report(source: Path) -> Iterator[str]:
    """In lines: family, layout, parts, what is unusual."""
    model = open_model(source)
    yield f"{model.family}" + (f" (preset {model.preset})" if model.preset else "")
    files = "1 file" if len(model.files) == 1 else f"{len(model.files)} files"
    yield f"layout       {model.layout}, {files}, {sum(file.size for file in model.files):,} bytes"
    predicts = model.cfg.prediction if model.predicts else "epsilon or v: the source does not say"
    if "unet" in model.parts:
        yield f"predicts     {predicts}"
    for name, part in model.parts.items():
        count = sum(tensor.numel() for tensor in part.ours().values())
        yield f"{name:<12} {count:,} parameters, {dtypes(part.tensors)}, {NAMES.get(part.dialect, part.dialect)} names"
        yield f"             {told(part.cfg)}"
    for note in unusual(model):
        yield f"note: {note}"


def told(cfg: Any) -> str:
    """What a config says other than Stable Diffusion 1.5's, which the defaults are."""
    other = [f"{one.name} {getattr(cfg, one.name)}" for one in fields(cfg) if getattr(cfg, one.name) != one.default]
    return ", ".join(other) or "as Stable Diffusion 1.5 has it"


def dtypes(tensors: Mapping[str, Tensor]) -> str:
    """The commonest first."""
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return ", ".join(f"{name} x{count}" if len(counts) > 1 else name for name, count in counts.most_common())


def unusual(model: Model) -> Iterator[str]:
    yield from model.notes
    if model.left_out:
        yield f"{len(model.left_out)} tensors are carried along unread: {', '.join(list(model.left_out)[:SHOWN])}"
    if not model.preset and {"unet", "controlnet"} & model.parts.keys():
        yield "a UNet of no known shape: heads and groups are as in its family, unless the source states them"
    if not model.whole:
        yield f"not a whole checkpoint: {', '.join(model.parts)}"


def faults(model: Model) -> Iterator[str]:
    """What a look at every value shows; the first tensor that is not finite stops it."""
    zero: list[str] = []
    for name, part in model.parts.items():
        for key, tensor in part.ours().items():
            if not wide(tensor).isfinite().all():
                raise MinisdError(f"{name}: {key} holds NaN or infinity", model.where,
                                  remedy="take another copy of the file", code=NUMERICAL)
            zero += [f"{name}: {key}"] if tensor.dim() > 1 and not wide(tensor).any() else []
    yield f"structure    {model.family}: every key and shape is there"
    yield "values       all finite"
    if zero:
        yield f"all zero     {', '.join(zero[:SHOWN])}" + (f" and {len(zero) - SHOWN} more" * (len(zero) > SHOWN))
    model.check_unchanged()
    sha256 = fingerprint(model.files)
    yield f"sha256       {sha256}"
    known = KNOWN.get(sha256)
    yield f"origin       {known}" if known else (
        "origin       cannot be proven: no published hash is known for it, and a flipped bit would not be seen")


def summary(a: Model, b: Model) -> Iterator[str]:
    """The first differences, and how many there are."""
    found = list(differences(a, b))
    yield from found[:SHOWN * 2]
    if len(found) > SHOWN * 2:
        yield f"… and {len(found) - SHOWN * 2} more: {len(found)} differ in all"


def differences(a: Model, b: Model) -> Iterator[str]:
    """Keys, shapes and values, in our names."""
    for name in sorted(a.parts.keys() | b.parts.keys()):
        if name not in a.parts or name not in b.parts:
            yield f"{name}: only in {a.where if name in a.parts else b.where}"
            continue
        one, other = a.parts[name].ours(), b.parts[name].ours()
        for key in sorted(one.keys() | other.keys()):
            if line := difference(one.get(key), other.get(key)):
                yield f"{name}.{key}: {line}"


def difference(a: Tensor | None, b: Tensor | None) -> str:
    """In words, or nothing."""
    if a is None or b is None:
        return "only in the " + ("first" if b is None else "second")
    if a.shape != b.shape:
        return f"{list(a.shape)} and {list(b.shape)}"
    if a.dtype == b.dtype and torch.equal(a, b):
        return ""
    gap = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
    kinds = "" if a.dtype == b.dtype else f"{a.dtype} and {b.dtype}, ".replace("torch.", "")
    return kinds + (f"values differ by up to {gap:.3g}" if gap else "values equal")
