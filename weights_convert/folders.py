"""Checkpoints in folders: diffusers' pipelines and their parts, and native ones."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from minisd.config import ModelConfig
from minisd.errors import MinisdError
from weights_convert import configs, vocabulary
from weights_convert.mapped import Seen
from weights_convert.model import (
    HF_TEXT,
    Model,
    Part,
    own_configs,
    parsed,
    recognised,
    restored,
    structured,
    with_parts,
)
from weights_convert.read import read_file

CONFIG, DEFAULTS, INDEX, LEFT_OUT = "config.json", "defaults", "model_index.json", "left_out.safetensors"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "safetensors.index.json", "fp16.safetensors", "safetensors.index.fp16.json",
           "fp16.safetensors.index.json", "bin", "bin.index.json", "fp16.bin")
LARGEST_JSON = 1 << 26
TOLD: dict[str, Callable[[Any, Mapping[str, Any], str], Any]] = {
    "unet": configs.unet_told, "controlnet": configs.unet_told, "vae": configs.vae_told, "text": configs.text_told}


def from_folder(path: Path) -> Model:
    """A folder is known by its JSON file."""
    if (path / INDEX).is_file():
        return from_pipeline(path)
    if not (path / CONFIG).is_file():
        raise MinisdError("no checkpoint in this folder", str(path), f"neither {INDEX} nor {CONFIG} is there",
                          "give a diffusers folder, a native folder, or a file")
    told = read_json(path / CONFIG)
    foreign = {"_class_name", "architectures", "model_type"} & told.keys()
    return from_component(path, told) if foreign else from_native(path)


def from_native(folder: Path) -> Model:
    """What minisd writes."""
    cfg, defaults = native_config(folder)
    paths = {name: folder / f"{name}.safetensors" for name in own_configs(cfg)}
    files = {name: read_file(path) for name, path in paths.items() if path.is_file()}
    parts = {name: Part(name, "ours", own_configs(cfg)[name], file.tensors, where=str(paths[name]))
             for name, file in files.items()}
    if not parts:
        raise MinisdError("a native folder without weights", str(folder), remedy="copy the whole folder")
    seen = tuple(file.seen for file in files.values())
    return Model(str(folder), "native", parts, cfg, seen, left_out(folder), defaults=defaults)


def native_config(folder: Path) -> tuple[ModelConfig, Mapping[str, Any]]:
    """The config of a native folder, and what it says that the model likes best."""
    told = read_json(folder / CONFIG)
    defaults = told.pop(DEFAULTS, {})
    return structured(ModelConfig, told, str(folder / CONFIG)), defaults


def native_json(cfg: ModelConfig, defaults: Mapping[str, Any]) -> str:
    """The same as the text of a file."""
    return json.dumps(asdict(cfg) | ({DEFAULTS: dict(defaults)} if defaults else {}), indent=1) + "\n"


def from_pipeline(folder: Path) -> Model:
    """A diffusers pipeline: every part that its index names must be there."""
    index = read_json(folder / INDEX)
    name = str(index.get("_class_name"))[:80]
    if not name.startswith("StableDiffusion"):
        raise MinisdError(f"not a Stable Diffusion pipeline but {name!r}", str(folder))
    read = {part: read_json(folder / name / CONFIG) for part, name in configs.FOLDERS.items()
            if index.get(name, [None, None]) != [None, None]}
    model = with_components(folder, {part: (folder / configs.FOLDERS[part], told) for part, told in read.items()})
    if "text" in model.parts:
        text = model.parts["text"]
        told = replace(text, cfg=vocabulary.check(folder / "tokenizer", text.cfg))
        model = with_parts(replace(model, parts={**model.parts, "text": told}))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    cfg = configs.scheduler_told(model.cfg, read_json(scheduler), str(scheduler))
    must_be_the_pooled_text(cfg, str(folder / configs.FOLDERS["unet"] / CONFIG))
    size, scale = read["unet"].get("sample_size", 64), read["vae"].get("scaling_factor", 0.18215)
    size = size * cfg.vae.factor if isinstance(size, int) else cfg.size
    notes = tuple(f"{name} is left behind" for name in configs.ABSENT if (folder / name).is_dir())
    return replace(model, cfg=replace(cfg, latent_scale=scale, size=size), predicts=True, notes=notes)


def must_be_the_pooled_text(cfg: ModelConfig, where: str) -> None:
    """Refuses a UNet whose class is something else, such as the pictures of unCLIP."""
    pooled = cfg.text[-1].projection_dim or cfg.text[-1].width
    if cfg.pooled_label and cfg.unet.label_dim != pooled:
        raise MinisdError(f"this UNet's class is a vector of {cfg.unet.label_dim}, and the pooled text one of {pooled}",
                          where, "what else it may be is not known here")


def from_component(folder: Path, told: configs.Json) -> Model:
    """One part of a pipeline in a folder of its own."""
    name = str(told.get("_class_name") or (told.get("architectures") or [""])[0])
    classes = {theirs: part for part, (_, theirs) in configs.CLASSES.items()} | {"CLIPTextModelWithProjection": "text"}
    if name not in classes:
        raise MinisdError(f"not a part of Stable Diffusion but {name[:80]!r}", str(folder / CONFIG))
    return with_components(folder, {classes[name]: (folder, told)})


def with_components(folder: Path, found: Mapping[str, tuple[Path, configs.Json]]) -> Model:
    """Parts with the weights of their folders, and what their configs tell beyond them."""
    files: list[Seen] = []
    parts, left = {}, left_out(folder)
    for name, (place, told) in found.items():
        read = [read_file(path) for path in weights_of(place)]
        files += [file.seen for file in read]
        part = recognised({key: tensor for file in read for key, tensor in file.tensors.items()}, "", str(place), name)
        part = replace(part, cfg=TOLD[part.kind](part.cfg, told, str(place / CONFIG)))
        if part.kind == "text":
            left |= part.left_out(HF_TEXT if part.dialect == "hf" else f"{HF_TEXT}text_model.")
            part, left = restored(part, left)
        parts[name] = part
    return with_parts(Model(str(folder), "diffusers", parts, ModelConfig(), tuple(files), left))


def weights_of(folder: Path) -> list[Path]:
    """The weight files of a part: safetensors before .bin, full precision before half, shards as their index says."""
    names = (f"{stem}.{ending}" for ending in ENDINGS for stem in STEMS)
    there = next((folder / name for name in names if (folder / name).is_file()), None)
    if there is None:
        raise MinisdError("a part of the model has no weights", str(folder),
                          f"none of {', '.join(f'{stem}.safetensors' for stem in STEMS)}", "copy the whole folder")
    if there.suffix != ".json":
        return [there]
    shards = sorted(set(read_json(there).get("weight_map", {}).values()))
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", "..") or "\\" in shard:
            raise MinisdError(f"a shard lies outside the folder: {shard!r:.100}", str(there))
        if not (folder / shard).is_file():
            raise MinisdError(f"the shard {shard} is missing", str(folder), remedy="copy the whole folder")
    return [folder / shard for shard in shards]


def left_out(folder: Path) -> dict[str, Tensor]:
    """What an earlier conversion could not place, so that the way back gives it again."""
    return read_file(folder / LEFT_OUT, copy=True).tensors if (folder / LEFT_OUT).is_file() else {}


def read_json(path: Path) -> configs.Json:
    """A JSON object, of bearable size."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_JSON)
    except OSError as error:
        raise MinisdError("a part of the model is missing, or cannot be read", str(path), str(error)[:200],
                          "copy the whole folder") from error
    return parsed(text, str(path), "copy the whole folder")
