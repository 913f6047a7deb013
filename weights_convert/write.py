"""Models out again: native folder, LDM single file, diffusers folder; each whole under its name, or not at all."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minisd.errors import NUMERICAL, RESOURCE, USAGE, MinisdError
from minisd.files import fresh
from weights_convert import configs, vocabulary
from weights_convert.folders import CONFIG, INDEX, LEFT_OUT, native_json
from weights_convert.limits import DTYPES
from weights_convert.mapped import Seen
from weights_convert.model import HF_TEXT, STATED, Model, Part, set_aside
from weights_convert.sources import PREFIXES
from weights_convert.tables.unet import LABELLED
from weights_convert.translate import from_ours

NAMES = {dtype: name for name, dtype in DTYPES.items()}
HINTS = (0, 2, 4, 6)                              # convolutions of a ControlNet's hint that widen
LINE = 64                                         # bytes of a line of the cache
SINGLE = ".safetensors"
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
Save = Callable[[Path, Mapping[str, Tensor]], None]


def layout_for(target: Path, to: str | None) -> str:
    """The layout asked for, or the one that the target's name means; others load a file by its name's ending."""
    to = to or ("ldm" if target.suffix.lower() == SINGLE else "native")
    must_be_named(target, to, to == "ldm")
    return to


def must_be_named(target: Path, to: str, single: bool) -> None:
    """Refuses a file without the ending of safetensors, and a folder with the ending of a file."""
    ending = target.suffix.lower()
    if single != (ending == SINGLE) or ending in PICKLED:
        what = f"one file, NAME{SINGLE}" if single else f"a folder, NAME without {ending}"
        raise MinisdError(f"the target's name does not go with the layout {to}", str(target)[:200], f"that is {what}",
                          "give another name, or another --to", USAGE)


def write(model: Model, target: Path, to: str, dtype: torch.dtype | None = None, allow_nonfinite: bool = False) -> None:
    """The model at a new place. Floating-point tensors become `dtype`, one by one, or stay as they are."""
    stated = {"format": "pt", STATED: json.dumps(asdict(model.cfg)), "minisd.preset": model.preset,
              "minisd.dialect": model.layout, "minisd.source_sha256": fingerprint(model.files)}

    def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
        save_file(path, tensors, stated, dtype, allow_nonfinite, model.check_unchanged)

    with new(target) as path:
        WRITERS[to](model, path, save)


@contextmanager
def new(target: Path) -> Iterator[Path]:
    """A path for what becomes the target when it is whole; one that is there already is an error."""
    try:
        if target.exists() or target.is_symlink():
            raise MinisdError("the target is there already", str(target), "nothing is ever overwritten",
                              "give another name, or move it away", USAGE)
        with fresh(target) as path:
            yield path
    except OSError as error:
        raise MinisdError("the target cannot be written", str(target)[:200], error.strerror or str(error),
                          "give a place that has room and may be written to", RESOURCE) from error


def save_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = None,
              allow_nonfinite: bool = False, check: Callable[[], None] = lambda: None) -> None:
    """A safetensors file written tensor by tensor, so ordered that nearly all begin with a line of the processor's
    cache when they are mapped, and the rest, the widest dtypes first, on their own boundaries.

    `check` is called before and behind the copy of each: reading what lay in a file that was cut off ends the process.
    """
    kinds = {name: dtype if dtype and t.is_floating_point() else t.dtype for name, t in tensors.items()}
    bytes_of = {name: tensor.numel() * kinds[name].itemsize for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (bytes_of[name] % LINE > 0, -kinds[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + bytes_of[name]
        header[name] = {"dtype": NAMES[kinds[name]], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            check()
            tensor = tensors[name].to("cpu", kinds[name], copy=True)
            check()
            if not allow_nonfinite:
                must_be_finite(name, tensor)
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def must_be_finite(name: str, tensor: Tensor) -> None:
    if not wide(tensor).isfinite().all():
        raise MinisdError(f"weights that are not finite: {name}", "", f"in {NAMES[tensor.dtype]} it holds NaN or "
                          "infinity", "take another copy or a wider --dtype; --allow-nonfinite takes it as it is",
                          NUMERICAL)


def wide(tensor: Tensor) -> Tensor:
    """The tensor as torch can look at its values: of eight bits it knows no questions."""
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor


def fingerprint(files: Iterable[Seen]) -> str:
    """sha256 of the source; of several files, of their hashes in order."""
    hashes = []
    for file in files:
        with file.path.open("rb") as opened:
            hashes.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


# ---------------------------------------------------------------- the targets
def to_native(model: Model, path: Path, save: Save) -> None:
    """What `minisd.load` maps."""
    if "controlnet" in model.parts:
        raise MinisdError("a native folder has no place for a ControlNet", model.where, remedy="--to ldm or diffusers",
                          code=USAGE)
    put(path / CONFIG, native_json(model.cfg, model.defaults))
    for name, part in model.parts.items():
        save(path / f"{name}.safetensors", part.ours())
    if model.left_out:
        save(path / LEFT_OUT, model.left_out)


def to_ldm(model: Model, path: Path, save: Save) -> None:
    """One file. A part alone has no prefix, a ControlNet its own."""
    if model.cfg.pooled_label:
        raise MinisdError("this UNet takes the pooled text as its label", model.where,
                          "a single file has no place that says so", "--to native or diffusers", USAGE)
    tensors = dict(model.left_out)
    for part in drawn(model):
        dialect, prefix = place(part)
        prefix = prefix if len(model.parts) > 1 or part.kind == "controlnet" else ""
        made = from_ours(part.ours(), part.rows(dialect))
        tensors |= {prefix + name: tensor for name, tensor in made.items()}
    save(path, tensors)


def place(part: Part) -> tuple[str, str]:
    """The dialect of a part in a single file, and its prefix."""
    if part.kind == "text":
        hf = part.cfg.activation == "quick_gelu"
        return ("hf", "cond_stage_model.transformer.") if hf else ("openclip", "cond_stage_model.model.")
    return "ldm", next(prefix for prefix, name in PREFIXES.items() if name == part.name)


def to_diffusers(model: Model, path: Path, save: Save) -> None:
    """A pipeline; a part alone is a folder as a pipeline has it."""
    if not model.whole and len(model.parts) > 1:
        raise MinisdError(f"this is {model.family}, and a diffusers folder is a whole pipeline or one part",
                          model.where, remedy="--to native or ldm", code=USAGE)
    left_out = dict(model.left_out)
    for part in drawn(model):
        folder = path / configs.FOLDERS[part.name] if model.whole else path
        if part.kind == "text":
            part, left = set_aside(part)
            left_out |= left
        ours = part.ours()
        put(folder / CONFIG, pretty(part_json(model, part, ours)))
        stem = "model" if part.kind == "text" else "diffusion_pytorch_model"
        theirs = from_ours(ours, part.rows(dialect_of(model, part)))
        if part.kind == "text":
            here = [name for name in left_out if name.startswith(HF_TEXT)]
            theirs |= {name.removeprefix(HF_TEXT): left_out.pop(name) for name in here}
        save(folder / f"{stem}.safetensors", theirs)
    if model.whole:
        put(path / INDEX, pretty(configs.index_json(model.cfg, model.parts)))
        put(path / "scheduler" / "scheduler_config.json", pretty(configs.scheduler_json(model.cfg)))
        for name, text in vocabulary.files(model.cfg.text[0]).items():
            put(path / "tokenizer" / name, text)
    if left_out:
        save(path / LEFT_OUT, left_out)


def lost(model: Model, to: str) -> Iterator[str]:
    """What a layout has no place for, or its own programs no use."""
    if to != "native" and "vision" in model.parts:
        yield "the vision tower is left behind: nothing is drawn with it"
    if to == "diffusers" and model.cfg.pooled_label:
        yield ("the UNet takes the pooled text as class_labels, which StableDiffusionPipeline does not hand over: "
               "call the UNet by itself (README, Limits)")


def drawn(model: Model) -> list[Part]:
    """The parts that the field's own layouts have a place for."""
    return [part for part in model.parts.values() if part.kind != "vision"]


def dialect_of(model: Model, part: Part) -> str:
    """Whose names a part has in a diffusers folder."""
    if part.kind == "text":
        return "hf"
    return LABELLED if part.kind == "unet" and model.cfg.pooled_label else "diffusers"


def part_json(model: Model, part: Part, ours: Mapping[str, Tensor]) -> configs.Json:
    size = model.cfg.size
    if part.kind == "unet":
        return configs.unet_json(part.cfg, size // model.cfg.vae.factor, model.cfg.pooled_label)
    if part.kind == "vae":
        return configs.vae_json(part.cfg, model.cfg.latent_scale, size)
    if part.kind == "controlnet":
        return configs.controlnet_json(part.cfg, [ours[f"hint.{n}.weight"].shape[0] for n in HINTS])
    return configs.text_json(part.cfg)


def pretty(told: configs.Json) -> str:
    return json.dumps(told, indent=2) + "\n"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


WRITERS = {"native": to_native, "ldm": to_ldm, "diffusers": to_diffusers}
