"""What the modules of a model are called in LoRA files: the product of the key tables and a few ways of spelling.

kohya's names are diffusers' (or, for SDXL, LDM's) with underscores for dots; PEFT's and diffusers' are paths with a
prefix; cloneofsimo's are numbers, counted over the attentions as diffusers had them in 2022.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from minisd.config import CLIP_H, CLIP_L, SD15, SD21, SDXL, ModelConfig, text_parts
from weights_convert.lora.adapter import Place
from weights_convert.tables import Row, clip, unet

CLIP_G = replace(CLIP_H, width=1280, depth=32, heads=20, projection_dim=1280, final_norm=False)
# The models that files are made for, in the order in which they are tried.
FAMILIES = {
    "SD1.x": ModelConfig(unet=SD15, text=(CLIP_L,)),
    "SD2.x": ModelConfig(unet=SD21, text=(CLIP_H,)),
    "SDXL": ModelConfig(unet=SDXL, text=(CLIP_L, CLIP_G)),
}
KOHYA = {"unet": "lora_unet_", "text": "lora_te_", "text_2": "lora_te2_"}
DIFFUSERS = {"unet": "unet.", "text": "text_encoder.", "text_2": "text_encoder_2."}
PEFT = "base_model.model."
CONVOLUTIONS = ("conv1", "conv2", "conv_in", "conv_out", "downsample", "upsample")  # of 3x3
# Inside an attention, and the Linear that makes values and gates: what cloneofsimo's trainer touched, in its order.
NUMBERED = {"unet": ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.out", "ff.in_proj",
                     "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.out"),
            "text": ("attn.k", "attn.v", "attn.q", "attn.out")}


class Module(NamedTuple):
    """A Linear or convolution: where it is, and its path as diffusers and transformers have it, and LDM."""

    place: Place
    hf: str
    ldm: str


def modules(cfg: ModelConfig) -> Iterator[Module]:
    """Every module of the parts that adapters touch."""
    yield from paired("unet", unet.rows(cfg.unet, "diffusers"), unet.rows(cfg.unet, "ldm"))
    for part, text in text_parts(cfg.text).items():
        rows = clip.text_rows(text, "hf")
        yield from paired(part, rows, rows)


def paired(part: str, hf: Sequence[Row], ldm: Sequence[Row]) -> Iterator[Module]:
    """The tables' weights, without `.weight`; q, k and v of a fused tensor each by itself."""
    for ours, theirs, other in zip(*(names(rows) for rows in (hf, hf, ldm)), strict=True):
        yield Module(Place(part, ours[0]), theirs[1], other[1])


def names(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Our and their names of each weight."""
    return [(ours.removesuffix(".weight"), theirs.removesuffix(".weight"))
            for row in rows if row.ours for ours, theirs in zip(row.ours, row.theirs, strict=True)
            if ours.endswith(".weight")]


def kernel_of(place: Place, cfg: ModelConfig) -> tuple[int, ...]:
    """Height and width of a convolution's kernel; nothing for a Linear."""
    last = place.path.rpartition(".")[2]
    if place.part != "unet":
        return ()
    if last in CONVOLUTIONS:
        return 3, 3
    return (1, 1) if last == "skip" or (last in ("proj_in", "proj_out") and not cfg.unet.linear_proj) else ()


def spellings(cfg: ModelConfig) -> dict[str, Place]:
    """Every way in which a file may call a module."""
    found: dict[str, Place] = {}
    for place, hf, ldm in modules(cfg):
        kohya, diffusers = KOHYA[place.part], DIFFUSERS[place.part]
        ways = [kohya + hf.replace(".", "_"), kohya + ldm.replace(".", "_"), diffusers + hf, PEFT + hf, hf]
        if place.part == "text":                  # numbered where a model has two text encoders
            ways.append("lora_te1_" + hf.replace(".", "_"))
        ways += [prefix + clip.bare(hf) for prefix in (diffusers, PEFT)]    # transformers 5 has dropped a word
        found |= {way: place for way in reversed(ways) if way not in found}
    return found


def numbered(cfg: ModelConfig) -> dict[str, Place]:
    """cloneofsimo's names: `unet:0`, `text_encoder:0`, ...; its trainer met the mid block after the way up."""
    found: dict[str, Place] = {}
    for part, leaves in NUMBERED.items():
        places = [module.place for module in modules(cfg) if module.place.part == part]
        blocks = dict.fromkeys(place.path.removesuffix("." + leaf) for place in places for leaf in leaves[:1]
                               if place.path.endswith("." + leaf))
        ordered = sorted(blocks, key=lambda path: path.startswith("mid."))
        for n, path in enumerate(f"{block}.{leaf}" for block in ordered for leaf in leaves):
            found[f"{DIFFUSERS[part].rstrip('.')}:{n}"] = Place(part, path)
    return found
