"""LoRA files beside the models of a pipeline: read, attached with a strength, and told what they touched."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd import attach
from minisd.errors import USAGE, MinisdError
from minisd.lora import Hadamard, Kronecker, LowRank, Side
from minisd.pipeline import StableDiffusion
from weights_convert.lora.adapter import Adapter, Entry, Place
from weights_convert.lora.read import read_adapter

log = logging.getLogger(__name__)

SHOWN = 10


def add_lora(sd: StableDiffusion, source: str | Path, strength: float | Mapping[str, float] = 1.0,
             name: str | None = None, allow_unused: bool = False) -> str:
    """Attach a LoRA file to a pipeline's UNet and text encoders, and return the name it has there.

    `strength` is one number, or numbers by patterns of module paths. An entry that the model has no module for is an
    error, unless `allow_unused`: then it is said.
    """
    adapter = read_adapter(source, None if allow_unused else sd.cfg)
    name = name or Path(source).stem.replace(".", "_")
    unused = sorted(f"{place.part} {place.path}" for place in adapter.entries if module_at(sd, place) is None)
    if len(unused) == len(adapter.entries) or (unused and not allow_unused):
        raise MinisdError(f"{len(unused)} of {len(adapter.entries)} modules of this LoRA are not in the model",
                          str(source), ", ".join(unused[:SHOWN]), "give a LoRA of this model's family; --allow-unused "
                          "takes what fits", USAGE)
    if unused:
        log.warning("%s: %d of %d modules of the LoRA are not in the model and are left out: %s", source, len(unused),
                    len(adapter.entries), ", ".join(unused[:SHOWN]))
    for part, model in parts(sd).items():
        sides = {path: side_of(entry, model.get_submodule(path), f"{part} {path}")
                 for path, entry in adapter.of(part).items() if module_at(sd, Place(part, path)) is not None}
        if sides:
            attach.put(model, name, sides)
            attach.reweigh(model, name, strength)
    return name


def parts(sd: StableDiffusion) -> dict[str, nn.Module]:
    """The models that a LoRA can touch, by their parts' names."""
    return {"unet": sd.unet} | {"text" if n == 1 else f"text_{n}": text for n, text in enumerate(sd.text, start=1)}


def module_at(sd: StableDiffusion, place: Place) -> nn.Module | None:
    """The module of a place, or None where the model has none."""
    try:
        return parts(sd)[place.part].get_submodule(place.path)
    except (AttributeError, KeyError):
        return None


def side_of(entry: Entry, module: nn.Module, where: str) -> Side:
    """The side path of a file's entry, as its module is: shapes are compared, device and dtype taken over."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    t = {role: tensor.to(weight.device, weight.dtype) for role, tensor in entry.tensors.items()}
    matrix = (weight.shape[0], weight[0].numel())
    if tuple(entry.delta().shape) != matrix:
        raise MinisdError("this LoRA was made for another model", where,
                          f"it adds {list(entry.delta().shape)} to a weight of {list(matrix)}", code=USAGE)
    alpha = entry.scale * entry.rank
    if entry.kind == "loha":
        pairs = [(t[f"{name}_a"], t[f"{name}_b"].flatten(1)) for name in ("w1", "w2")]
        side: Side = Hadamard(pairs[0], pairs[1], alpha, tuple(weight.shape))
    elif entry.kind == "lokr":
        w1, w2 = (tuple(t[role] for role in (name, f"{name}_a", f"{name}_b") if role in t) for name in ("w1", "w2"))
        side = Kronecker(w1, w2, alpha, tuple(weight.shape))
    else:
        kernel = [1] * (weight.dim() - 2)
        down, up = t["down"], t["up"]
        if weight.dim() == 4 and down.dim() == 2:     # a 1x1 convolution's, kept as a matrix
            down = down.unflatten(1, weight.shape[1:])
        elif weight.dim() == 2:
            down = down.flatten(1)
        side = LowRank(down, up.reshape(*up.shape[:2], *kernel), alpha, t.get("mid"))
    return side.requires_grad_(False)


def entries_of(model: nn.Module, name: str, part: str, dtype: torch.dtype = torch.float32) -> dict[Place, Entry]:
    """An attached LoRA's side paths as a file has them."""
    found: dict[Place, Entry] = {}
    for path, side in attach.sides(model, name).items():
        tensors = {role: tensor.detach().to("cpu", dtype) for role, tensor in side.named_parameters()}
        found[Place(part, path)] = Entry("lora", tensors, float(side.alpha))  # type: ignore[arg-type]
    return found


def taken(sd: StableDiffusion, name: str) -> Adapter:
    """An attached LoRA as an adapter that can be written."""
    entries: dict[Place, Entry] = {}
    for part, model in parts(sd).items():
        if name in attach.adapters(model):
            entries |= entries_of(model, name, part)
    return Adapter(entries, sd.cfg)
