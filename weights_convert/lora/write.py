"""LoRA files out: kohya's names, diffusers' of today and of 2022, PEFT's folder, cloneofsimo's numbers."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minisd.errors import USAGE, MinisdError
from weights_convert.lora.adapter import Adapter, Entry, Place
from weights_convert.lora.names import DIFFUSERS, KOHYA, PEFT, Module, modules, numbered
from weights_convert.lora.read import BESIDE, PEFT_FILES, PROCESSORS, SHOWN
from weights_convert.model import STATED
from weights_convert.tables import clip
from weights_convert.write import new, pretty, put, save_file

Named = dict[str, Tensor]
ROLES = {"kohya": {"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight"},
         "diffusers": {"down": ".lora_A.weight", "up": ".lora_B.weight"},
         "diffusers-old": {"down": "_lora.down.weight", "up": "_lora.up.weight"},
         "cloneofsimo": {"down": ":down", "up": ":up"}}
KIN = {"loha": ".hada_", "lokr": ".lokr_"}        # before a role, in kohya's files
UNSUNG = {"ss_", "modelspec."}                    # metadata of trainers, kept as they are


def write_adapter(adapter: Adapter, target: Path, dialect: str = "kohya", dtype: torch.dtype | None = None) -> None:
    """The adapter at a new place, in a dialect; a folder for PEFT. What a dialect cannot say is an error."""
    named = {module.place: module for module in modules(adapter.cfg)}
    make: Callable[[Adapter, Mapping[Place, Module]], tuple[Named, dict[str, str]]] = WRITERS[dialect]
    tensors, metadata = make(adapter, named)
    described = {key: value for key, value in adapter.metadata.items() if key.startswith(tuple(UNSUNG))}
    metadata = {"format": "pt", STATED: json.dumps(asdict(adapter.cfg)), **specified(adapter), **described, **metadata}
    with new(target) as path:
        if dialect != "peft":
            save_file(path, tensors | dict(adapter.embeddings), metadata, dtype)
        else:
            save_file(path / PEFT_FILES[0], tensors, metadata, dtype)
            put(path / PEFT_FILES[1], pretty(peft_config(adapter.of(next(adapter.parts())), named,
                                                         next(adapter.parts()))))


def specified(adapter: Adapter) -> dict[str, str]:
    """What trainers say of a LoRA: Stability's ModelSpec and kohya's network, as far as the tensors tell."""
    ranks = [entry.rank for entry in adapter.entries.values()]
    alphas = [entry.rank if entry.alpha is None else entry.alpha for entry in adapter.entries.values()]
    architecture = "stable-diffusion-v2" if adapter.cfg.unet.linear_proj else "stable-diffusion-v1"
    return {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": f"{architecture}/lora",
            "modelspec.implementation": "minisd", "ss_network_module": "networks.lora",
            "ss_network_dim": str(max(ranks)) if len(set(ranks)) == 1 else "Dynamic",
            "ss_network_alpha": f"{alphas[0]:g}" if len(set(alphas)) == 1 else "Dynamic",
            "ss_v2": str(adapter.cfg.unet.linear_proj)}


# ---------------------------------------------------------------- the dialects
def to_kohya(adapter: Adapter, named: Mapping[Place, Module]) -> tuple[Named, dict[str, str]]:
    """Everything, alphas in tensors of their own."""
    tensors: Named = {}
    for place, entry in adapter.entries.items():
        module = named[place]
        path = module.ldm if adapter.cfg.unet.label_dim and place.part == "unet" else module.hf
        prefix = "lora_te1_" if place.part == "text" and len(adapter.cfg.text) > 1 else KOHYA[place.part]
        stem = prefix + path.replace(".", "_")
        for role, tensor in entry.tensors.items():
            tensors[stem + (ROLES["kohya"][role] if entry.kind == "lora" else KIN[entry.kind] + role)] = tensor
        if entry.alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(entry.alpha, dtype=next(iter(entry.tensors.values())).dtype)
    return tensors, {}


def to_diffusers(adapter: Adapter, named: Mapping[Place, Module]) -> tuple[Named, dict[str, str]]:
    """PEFT's names under a prefix for each part; alphas in the metadata."""
    refuse(adapter, lambda place, entry: entry.kind != "lora" or "mid" in entry.tensors, "diffusers")
    tensors = {DIFFUSERS[place.part] + named[place].hf + ROLES["diffusers"][role]: tensor
               for place, entry in adapter.entries.items() for role, tensor in entry.tensors.items()}
    if all(entry.alpha is None for entry in adapter.entries.values()):
        return tensors, {}
    told = {f"{DIFFUSERS[part]}{key}": value for part in adapter.parts()
            for key, value in peft_config(adapter.of(part), named, part).items()}
    return tensors, {BESIDE: json.dumps(told, indent=2, sort_keys=True)}


def to_peft(adapter: Adapter, named: Mapping[Place, Module]) -> tuple[Named, dict[str, str]]:
    """One part, as PEFT's `save_pretrained` writes it."""
    refuse(adapter, lambda place, entry: entry.kind != "lora" or "mid" in entry.tensors, "PEFT")
    if len(list(adapter.parts())) > 1:
        raise MinisdError("PEFT's folders hold one part", why=f"this adapter has {', '.join(adapter.parts())}",
                          remedy="write kohya's or diffusers' names, or take one part by --only", code=USAGE)
    return {PEFT + named[place].hf + ROLES["diffusers"][role]: tensor
            for place, entry in adapter.entries.items() for role, tensor in entry.tensors.items()}, {}


def to_diffusers_old(adapter: Adapter, named: Mapping[Place, Module]) -> tuple[Named, dict[str, str]]:
    """The attention processors of 2022: attentions only, no alphas."""
    new = {part: {today: old for old, today in PROCESSORS.items() if old.startswith(start)}
           for part, start in (("unet", ".processor"), ("text", ".self_attn"))}
    tensors: Named = {}

    def stem(place: Place) -> str | None:
        hf = named[place].hf
        end = next((end for end in new.get(place.part, {}) if hf.endswith(end)), None)
        return DIFFUSERS[place.part] + hf.removesuffix(end) + new[place.part][end] if end else None

    refuse(adapter, lambda place, entry: entry.kind != "lora" or stem(place) is None, "the attention processors")
    for place, entry in adapter.entries.items():
        for role, tensor in folded(entry).items():
            tensors[f"{stem(place)}{ROLES['diffusers-old'][role]}"] = tensor
    return tensors, {}


def to_cloneofsimo(adapter: Adapter, named: Mapping[Place, Module]) -> tuple[Named, dict[str, str]]:
    """Numbers; of each part either all that its trainer touched, or nothing."""
    numbers = {place: number for number, place in numbered(adapter.cfg).items()}
    refuse(adapter, lambda place, entry: entry.kind != "lora" or place not in numbers, "cloneofsimo's numbers")
    absent = [place.path for place in numbers if place.part in adapter.parts() and place not in adapter.entries]
    if absent:
        raise MinisdError("cloneofsimo's numbers are counted over all attentions", why="this adapter leaves out "
                          f"{len(absent)}: {', '.join(absent[:SHOWN])}", remedy="write another dialect", code=USAGE)
    return {numbers[place] + ROLES["cloneofsimo"][role]: tensor
            for place, entry in adapter.entries.items() for role, tensor in folded(entry).items()}, {}


WRITERS = {"kohya": to_kohya, "diffusers": to_diffusers, "diffusers-old": to_diffusers_old, "peft": to_peft,
           "cloneofsimo": to_cloneofsimo}


def refuse(adapter: Adapter, unsaid: Callable[[Place, Entry], bool], dialect: str) -> None:
    """Stops where a dialect has no words for an entry."""
    found = [f"{place.part} {place.path} ({entry.kind})" for place, entry in adapter.entries.items()
             if unsaid(place, entry)]
    if found:
        raise MinisdError(f"{len(found)} of {len(adapter.entries)} entries cannot be said by {dialect}",
                          why=", ".join(found[:SHOWN]), remedy="write kohya's names, or resize it to a plain LoRA",
                          code=USAGE)


def folded(entry: Entry) -> dict[str, Tensor]:
    """Tensors with alpha / rank inside `up`, for dialects without alphas; exact for powers of two."""
    return dict(entry.tensors) if entry.scale == 1 else {**entry.tensors, "up": entry.tensors["up"] * entry.scale}


def peft_config(entries: Mapping[str, Entry], named: Mapping[Place, Module], part: str) -> dict[str, Any]:
    """What PEFT's LoraConfig says of a part: the commonest rank and alpha, and patterns for the others.

    It matches the ends of paths, which here have no `text_model`: transformers 5 has none, and older ones end alike.
    """
    ends = {path: clip.bare(named[Place(part, path)].hf) for path in entries}
    ranks = {ends[path]: entry.rank for path, entry in entries.items()}
    alphas = {ends[path]: float(entry.rank if entry.alpha is None else entry.alpha) for path, entry in entries.items()}
    rank, alpha = commonest(list(ranks.values())), commonest(list(alphas.values()))
    return {"r": rank, "lora_alpha": whole(alpha), "target_modules": sorted(ranks), "peft_type": "LORA",
            "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
            "alpha_pattern": {path: whole(value) for path, value in alphas.items() if value != alpha}}


def commonest(values: list[Any]) -> Any:
    return max(values, key=values.count)


def whole(value: float) -> float:
    return int(value) if math.isclose(value, int(value), rel_tol=0) else value
