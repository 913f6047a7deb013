"""LoRA files in: every dialect is recognised by its keys, and every key must find its module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minisd.config import ModelConfig
from minisd.errors import NUMERICAL, MinisdError
from weights_convert.embedding import is_alone, is_bundled
from weights_convert.folders import read_json
from weights_convert.lora.adapter import Adapter, Entry, Kind, Place
from weights_convert.lora.names import DIFFUSERS, FAMILIES, modules, numbered, spellings
from weights_convert.model import parsed, stated
from weights_convert.read import read_file

BESIDE = "lora_adapter_metadata"                  # in the metadata of those that diffusers writes
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
# What a key ends with: the dialect that writes it so, the kind of adapter, and the tensor's role.
ENDS: dict[str, tuple[str, Kind, str]] = {
    ".lora_down.weight": ("kohya", "lora", "down"), ".lora_up.weight": ("kohya", "lora", "up"),
    ".lora_mid.weight": ("kohya", "lora", "mid"), ".alpha": ("kohya", "lora", "alpha"),
    ".lora_A.weight": ("diffusers", "lora", "down"), ".lora_B.weight": ("diffusers", "lora", "up"),
    ".lora_A.default.weight": ("peft", "lora", "down"), ".lora_B.default.weight": ("peft", "lora", "up"),
    ".lora.down.weight": ("diffusers", "lora", "down"), ".lora.up.weight": ("diffusers", "lora", "up"),
    ".lora_linear_layer.down.weight": ("diffusers-old", "lora", "down"),
    ".lora_linear_layer.up.weight": ("diffusers-old", "lora", "up"),
    "_lora.down.weight": ("diffusers-old", "lora", "down"), "_lora.up.weight": ("diffusers-old", "lora", "up"),
    ":down": ("cloneofsimo", "lora", "down"), ":up": ("cloneofsimo", "lora", "up"),
    **{f".hada_{role}": ("kohya", "loha", role) for role in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{f".lokr_{role}": ("kohya", "lokr", role) for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
}
UNREAD = {
    ".dora_scale": "DoRA", ".lora_magnitude_vector": "DoRA", ".hada_t1": "LoHa with a core",
    ".hada_t2": "LoHa with a core", ".lokr_t1": "LoKr with a core", ".lokr_t2": "LoKr with a core",
    ".diff": "full differences", ".w_norm": "norms", ".oft_blocks": "OFT", ".lora_B.bias": "biases",
}
NEEDED: dict[Kind, tuple[frozenset[str], ...]] = {    # the roles that an entry may consist of
    "lora": (frozenset({"down", "up"}), frozenset({"down", "up", "mid"})),
    "loha": (frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}),),
    "lokr": tuple(frozenset(a + b) for a in (["w1"], ["w1_a", "w1_b"]) for b in (["w2"], ["w2_a", "w2_b"])),
}
# Of the attention processors of 2022, and of the text encoder's before PEFT: their last word, and the module's.
PROCESSORS = {".processor.to_q": ".to_q", ".processor.to_k": ".to_k", ".processor.to_v": ".to_v",
              ".processor.to_out": ".to_out.0", ".self_attn.to_q": ".self_attn.q_proj",
              ".self_attn.to_k": ".self_attn.k_proj", ".self_attn.to_v": ".self_attn.v_proj",
              ".self_attn.to_out": ".self_attn.out_proj"}
SHOWN = 10
Stems = dict[str, tuple[Kind, dict[str, Tensor]]]   # by the module's name in the file: the kind, tensors by role


class AnotherModel(MinisdError):
    """An adapter whose modules, or some of them, a model does not have."""


def read_adapter(source: str | Path, cfg: ModelConfig | None = None) -> Adapter:
    """The adapter of a .safetensors, .ckpt or .pt file, or of a folder that PEFT wrote.

    `cfg` is of the model it belongs to; without it, what the file says, or the family whose names it has.
    """
    path = Path(source)
    peft: Mapping[str, Any] = {}
    if path.is_dir():
        if not (path / PEFT_FILES[1]).is_file():
            raise MinisdError("no LoRA in this folder", str(path), f"{PEFT_FILES[1]} is not there",
                              "give the folder that PEFT wrote, or a LoRA's file")
        path, peft = path / PEFT_FILES[0], read_json(path / PEFT_FILES[1])
    file = read_file(path)
    if is_alone(file.tensors) and not any(key.endswith((*ENDS, *UNREAD)) for key in file.tensors):
        raise MinisdError("an embedding, not a LoRA", str(path), f"it holds {', '.join(file.tensors)} alone",
                          "give it by --embedding")
    embeddings = {key: one for key, one in file.tensors.items() if is_bundled(key)}
    tensors = {key: one for key, one in file.tensors.items() if key not in embeddings and not key.endswith(":rank")}
    stems, dialect = grouped(tensors, str(path))
    cfg, table = family(stems, cfg or stated(file.metadata, str(path)), str(path))
    alphas = alphas_of(file.metadata, peft, cfg, str(path))
    entries: dict[Place, Entry] = {}
    for stem, (kind, roles) in stems.items():
        alpha = roles.pop("alpha", None)
        value = float(alpha) if alpha is not None else alphas.get(table[stem])
        entries[table[stem]] = Entry(kind, roles, value)
        check(entries[table[stem]], stem, str(path))
    dialect = "peft" if peft or all(stem.startswith("base_model.") for stem in stems) else dialect
    return Adapter(entries, cfg, dict(file.metadata), embeddings, dialect, tuple(file.notes))


def grouped(tensors: Mapping[str, Tensor], where: str) -> tuple[Stems, str]:
    """Tensors by the module's name as the file spells it and by role; and the dialect."""
    stems: Stems = {}
    dialects: dict[str, None] = {}
    strays: list[str] = []
    for key, tensor in tensors.items():
        end = next((end for end in ENDS if key.endswith(end)), None)
        if end is None:
            strays.append(key)
            continue
        dialect, kind, role = ENDS[end]
        stem = renamed(key.removesuffix(end))
        kind = stems[stem][0] if role == "alpha" and stem in stems else kind
        roles = stems[stem][1] if stem in stems else {}
        stems[stem], roles[role] = (kind, roles), tensor
        if role != "alpha":
            dialects[dialect] = None
    if strays or not stems:
        unread = next((what for end, what in UNREAD.items() for key in strays if key.endswith(end)), None)
        what = f"this adapter holds {unread}, which are not read" if unread else "not a LoRA that is known"
        raise MinisdError(what, where, f"{len(strays)} keys are strange: {', '.join(strays[:SHOWN])}" if strays else
                          "it holds no side paths", "give a LoRA, LoCon, LoHa or LoKr file")
    return stems, next(iter(dialects), "kohya")


def renamed(stem: str) -> str:
    """A name of the attention processors' time as it is today."""
    for old, new in PROCESSORS.items():
        if stem.endswith(old):
            return stem.removesuffix(old) + new
    return stem


def family(stems: Stems, cfg: ModelConfig | None, where: str) -> tuple[ModelConfig, dict[str, Place]]:
    """The model whose modules have all these names, and which names they are."""
    faults: list[tuple[int, str]] = []
    for name, one in (FAMILIES if cfg is None else {"the model": cfg}).items():
        table = spellings(one) | numbered(one)
        strays = [stem for stem in stems if stem not in table]
        if strays:
            faults.append((len(strays), f"{len(strays)} of its {len(stems)} modules are not in {name}: "
                                        f"{', '.join(strays[:SHOWN])}"))
        elif (width := text_width(stems, table)) in (None, one.unet.context_dim):
            return one, table
        else:
            faults.append((0, f"it was made for text states of {width} numbers, {name} has {one.unet.context_dim}"))
    raise AnotherModel("the adapter belongs to another model", where, min(faults)[1],
                       "give the model that it was made for")


def text_width(stems: Stems, table: Mapping[str, Place]) -> int | None:
    """How wide the text states are that its cross-attentions read, where it touches any."""
    reads = (".cross_attn.k", ".cross_attn.v")
    return next((roles["down"].shape[1] for stem, (_, roles) in stems.items()
                 if table[stem].path.endswith(reads) and "down" in roles), None)


def check(entry: Entry, stem: str, where: str) -> None:
    """That an entry is whole, fits together and is finite."""
    roles = frozenset(entry.tensors)
    if roles not in NEEDED[entry.kind]:
        there = ", ".join(sorted(roles)) or "alpha alone"
        raise MinisdError(f"{stem} is not whole", where, f"a {entry.kind} of {there}", "fetch the file again")
    for role, tensor in entry.tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise MinisdError(f"{stem} holds NaN, infinity or no fractions", where, f"{role} is {tensor.dtype}",
                              code=NUMERICAL)
    if entry.alpha is not None and not abs(entry.alpha) < float("inf"):
        raise MinisdError(f"{stem} has an alpha of {entry.alpha}", where, code=NUMERICAL)
    try:
        entry.shape  # noqa: B018
    except RuntimeError as error:
        shapes = ", ".join(f"{role} {list(tensor.shape)}" for role, tensor in entry.tensors.items())
        raise MinisdError(f"the tensors of {stem} do not fit together", where, shapes) from error


def alphas_of(metadata: Mapping[str, str], peft: Mapping[str, Any], cfg: ModelConfig, where: str) -> dict[Place, float]:
    """Alphas that stand beside the tensors: in PEFT's folder, or by parts in the metadata that diffusers writes."""
    configs: dict[str, dict[str, Any]] = {}
    for key, value in parsed(metadata.get(BESIDE, "{}"), where).items():
        part, _, name = key.partition(".")
        configs.setdefault(part, {})[name] = value
    found: dict[Place, float] = {}
    for place, hf, _ in modules(cfg):
        config = peft or configs.get(DIFFUSERS[place.part].rstrip("."), {})
        if "lora_alpha" in config:
            special = config.get("alpha_pattern") or {}
            ends = [value for end, value in special.items() if hf == end or hf.endswith("." + end)]
            try:
                found[place] = float((ends or [config["lora_alpha"]])[0])
            except (TypeError, ValueError) as error:
                raise MinisdError("the LoRA's alphas are not numbers", where, str(error)[:200]) from error
    return found
