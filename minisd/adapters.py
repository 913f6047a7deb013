"""LoRA files beside the models of a pipeline: checked against its config, laid on with a strength, and taken off.

    name = add_lora(sd, "style.safetensors", 0.8)
    weigh_lora(sd, name, "0.8:te=0.5:in=1:mid=0:out=0.5")
    merged = merge_loras(sd)                      # no cost in use; merged.undo() gives the same bits back
    remove_lora(sd, name)
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd import attach, surgery, words
from minisd.attach import Merged
from minisd.config import ModelConfig, text_parts
from minisd.drawing.tags import Strength, read_ask
from minisd.errors import BAD_FILE, MinisdError
from minisd.lora import Hadamard, Kronecker, LowRank, Side
from minisd.pipeline import StableDiffusion
from weights_convert.lora.adapter import Adapter, Entry, Place
from weights_convert.lora.read import AnotherModel, read_adapter

log = logging.getLogger(__name__)

SHOWN = 10
# A number; what stands behind a LoRA's name, as `tags` reads it; or numbers by patterns of paths, in every part alike.
Weights = float | str | Mapping[str, float]


# ---------------------------------------------------------------- read
def fitting(source: str | Path, cfg: ModelConfig, models: Mapping[str, nn.Module],
            allow_unused: bool = False) -> Adapter:
    """A LoRA file's entries for these models, of which only the shapes are looked at.

    An entry that the model has no module for is an error, unless `allow_unused`: then it is said. Then a LoRA of a
    whole UNet also fits one that was cut from it, block by block.
    """
    try:
        adapter = read_adapter(source, cfg)
    except AnotherModel as error:
        if not allow_unused:
            error.remedy += "; --allow-unused takes what fits"
            raise
        adapter = descended(read_adapter(source), cfg)
    unused = [place for place in adapter.entries if module_at(models, place) is None]
    if len(unused) == len(adapter.entries) or (unused and not allow_unused):
        raise MinisdError(f"{len(unused)} of {len(adapter.entries)} modules of this LoRA are not in the model",
                          str(source), listed(unused), "give a LoRA of this model's family; --allow-unused takes what "
                          "fits", BAD_FILE)
    if unused:
        log.warning("%s: %d of %d modules of the LoRA are not in the model and are left out: %s", source, len(unused),
                    len(adapter.entries), listed(unused))
    entries = {place: entry for place, entry in adapter.entries.items() if place not in unused}
    for place, entry in entries.items():
        must_fit(entry, models[place.part].get_submodule(place.path), source, place)
    return replace(adapter, entries=entries)


def listed(places: list[Place]) -> str:
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return ", ".join(f"{place.part} {place.path}" for place in sorted(places)[:SHOWN]) + more


def descended(adapter: Adapter, cfg: ModelConfig) -> Adapter:
    """A LoRA of a whole UNet under the paths that a student's blocks have; what the student lacks keeps its own."""
    try:
        surgery.must_descend(adapter.cfg.unet, cfg.unet)
    except MinisdError:
        return adapter
    origins = surgery.origins(adapter.cfg.unet, cfg.unet)
    mine = {theirs: ours for ours, theirs in origins.items()}
    return replace(adapter, entries={(renamed(place, mine, set(origins)) if place.part == "unet" else place): entry
                                     for place, entry in adapter.entries.items()})


def renamed(place: Place, mine: Mapping[str, str], taken: set[str]) -> Place:
    """Where a module of the whole UNet is in the student; a name that is another block's there is made no one's."""
    block = surgery.block_of(place.path)
    if block in mine:
        return Place(place.part, mine[block] + place.path.removeprefix(block))
    return Place(place.part, f"(teacher's) {place.path}") if block in taken else place


def must_fit(entry: Entry, module: nn.Module, source: str | Path, place: Place) -> None:
    """Refuses an entry of another shape than its module's."""
    weight, down = module.weight, entry.tensors.get("down")
    assert isinstance(weight, Tensor)
    matrix = (weight.shape[0], weight.shape[1:].numel())
    kernels = down is not None and "mid" not in entry.tensors and down.dim() == weight.dim() == 4
    if entry.shape != matrix or (kernels and down is not None and down.shape[1:] != weight.shape[1:]):
        raise MinisdError("this LoRA was made for another model", f"{source}: {place.part} {place.path}",
                          f"it adds {list(entry.shape)} to a weight of {list(matrix)}",
                          "give the model that it was made for, by --model", BAD_FILE)


# ---------------------------------------------------------------- on and off
@torch.inference_mode(False)                      # inside it, too, they are weights like any others
def add_lora(sd: StableDiffusion, source: str | Path, strength: Weights = 1.0, name: str | None = None,
             allow_unused: bool = False) -> str:
    """Attach a LoRA file to a pipeline's UNet and text encoders, and return the name it has there; see `fitting`.

    Words that the file brings along are taught.
    """
    name = name or Path(source).stem.replace(".", "_")
    adapter = fitting(source, sd.cfg, parts(sd), allow_unused)
    lessons = words.lessons_in(adapter.embeddings, sd.cfg, str(source))
    words.must_differ([word.text for word in sd.text[0].cfg.words], lessons)
    put_on(sd, name, adapter)
    words.teach(sd, lessons, name)
    weigh_lora(sd, name, strength)
    return name


def put_on(sd: StableDiffusion, name: str, adapter: Adapter) -> None:
    """Lay a LoRA that fits beside the models, as trained."""
    for part in adapter.parts():
        model = parts(sd)[part]
        attach.put(model, name, {path: side_of(entry, model.get_submodule(path))
                                 for path, entry in adapter.of(part).items()})


def weigh_lora(sd: StableDiffusion, name: str, strength: Weights) -> None:
    """Set how much of an attached LoRA is added, in place."""
    if isinstance(strength, Mapping):
        for model in wearing(sd, name).values():
            attach.reweigh(model, name, strength)
    else:
        weigh(sd, name, read_ask(f"{name}:{strength}").strength)


def weigh(sd: StableDiffusion, name: str, strength: Strength) -> None:
    """The same by parts of the pipeline."""
    strength.check_stages(len(sd.cfg.unet.widths))
    for part, model in wearing(sd, name).items():
        attach.reweigh(model, name, strength.patterns() if part == "unet" else strength.text)


def remove_lora(sd: StableDiffusion, name: str) -> None:
    """Take a LoRA off, and the words it brought; the models' weights have the bits they had."""
    for model in wearing(sd, name).values():
        attach.detach(model, name)
    for text in sd.text:
        words.forget(text, [word.text for word in text.cfg.words if word.lora == name])


def wearing(sd: StableDiffusion, name: str) -> dict[str, nn.Module]:
    """The parts that an attached LoRA touches."""
    found = {part: model for part, model in parts(sd).items() if name in attach.adapters(model)}
    if not found:
        raise attach.absent(sd.unet, name)
    return found


@dataclass(frozen=True)
class MergedPipeline:
    """What stood in a pipeline's models before its LoRAs were merged."""

    models: tuple[Merged, ...]

    def undo(self) -> None:
        """The very modules and parameters as before, LoRAs beside them."""
        for one in self.models:
            one.undo()


def merge_loras(sd: StableDiffusion) -> MergedPipeline:
    """Add all attached LoRAs to the weights, in their strengths: drawing then costs what it costs without any."""
    return MergedPipeline(tuple(attach.merge(model) for model in parts(sd).values()))


# ---------------------------------------------------------------- what is there
def parts(sd: StableDiffusion) -> dict[str, nn.Module]:
    """The models that a LoRA can touch, by their parts' names."""
    return {"unet": sd.unet, **text_parts(sd.text)}


def module_at(models: Mapping[str, nn.Module], place: Place) -> nn.Module | None:
    """The module of a place, or None where the models have none."""
    try:
        return models[place.part].get_submodule(place.path)
    except (AttributeError, KeyError):
        return None


def side_of(entry: Entry, module: nn.Module) -> Side:
    """The side path of a file's entry, as its module is: device and dtype are taken over."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    t = {role: tensor.to(weight.device, weight.dtype) for role, tensor in entry.tensors.items()}
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
