"""What a set of tensors is: which part, in whose names, of which shape. Keys and shapes decide, never a file's name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count, takewhile
from typing import Any, NamedTuple, NoReturn

from minisd.config import CLIP_H, PRESETS, SD15, SDXL, CLIPTextConfig, CLIPVisionConfig, UNetConfig, VAEConfig
from minisd.errors import MinisdError
from weights_convert.tables import Row, clip, controlnet, unet, vae

Shapes = Mapping[str, tuple[int, ...]]
# A key that only this part has, and only in this dialect; the first that is there decides.
SIGNS = (
    ("input_hint_block.0.weight", "controlnet", "ldm"), ("controlnet_mid_block.weight", "controlnet", "diffusers"),
    ("controlnet_down_blocks.0.weight", "controlnet", "diffusers"), ("zero.0.weight", "controlnet", "ours"),
    ("input_blocks.0.0.weight", "unet", "ldm"), ("class_embedding.linear_1.weight", "unet", unet.LABELLED),
    ("time_embedding.linear_1.weight", "unet", "diffusers"),
    ("time.in_proj.weight", "unet", "ours"),
    ("decoder.mid.block_1.norm1.weight", "vae", "ldm"), ("decoder.latents.weight", "vae", "ours"),
    ("decoder.mid_block.attentions.0.query.weight", "vae", "diffusers-2022"),
    ("decoder.mid_block.resnets.0.norm1.weight", "vae", "diffusers"),
    ("patch.weight", "vision", "ours"), ("vision_model.embeddings.patch_embedding.weight", "vision", "hf"),
    ("text_model.embeddings.token_embedding.weight", "text", "hf"),
    ("embeddings.token_embedding.weight", "text", "hf-bare"),
    ("ln_final.weight", "text", "openclip"), ("token.weight", "text", "ours"),
)
STAGES = 5                                        # that a UNet may have
# Parts of keys that betray what is no model of ours.
OTHERS = (
    (("lora_", ".lora.", "hada_w1", "lokr_w"), "a LoRA"), (("string_to_param", "emb_params"), "a textual inversion"),
    (("ip_adapter", "image_proj."), "an IP-Adapter"), (("adapter.body.", "body.0.resnets."), "a T2I-Adapter"),
    (("joint_blocks.",), "an SD3 checkpoint"), (("double_blocks.",), "a Flux checkpoint"),
)
WAYS = {"a LoRA": "give a model, and this by --lora; `python -m weights_convert lora` converts it",
        "a textual inversion": "give a model, and this by --embedding"}
REFINER = replace(SDXL, widths=(384, 768, 1536, 1536), depths=(0, 4, 4, 0), mid_depth=4, context_dim=1280,
                  label_dim=2560)
DEPTH2 = replace(PRESETS["sd21"], in_channels=5)
FAMILIES = {
    "sd15": "SD1.x", "sd15-midless": "SD1.x without mid block", "sd15-inpaint": "SD1.x inpainting",
    "sd15-pix2pix": "instruct-pix2pix", "sd21": "SD2.x", "sdxl": "SDXL", "sdxl-refiner": "SDXL refiner",
    "sd2-depth": "SD2 depth", "sd2-inpaint": "SD2 inpainting", "bk-base": "BK-SDM base", "bk-small": "BK-SDM small",
    "bk-tiny": "BK-SDM tiny", "tiny": "tiny",
}
KNOWN = PRESETS | {"sdxl-refiner": REFINER, "sd2-depth": DEPTH2, "sd2-inpaint": replace(DEPTH2, in_channels=9)}
UNDRAWN = ("sdxl", "sdxl-refiner", "sd2-depth")  # their keys are known; their conditions are not


def part_of(keys: Iterable[str]) -> tuple[str, str] | None:
    """The part and the dialect of keys without a prefix, or None."""
    there = set(keys)
    return next(((part, dialect) for key, part, dialect in SIGNS if key in there), None)


def refuse_others(shapes: Shapes, where: str) -> NoReturn:
    """What belongs to another kind of file is called by its name, and its way is told."""
    listed = list(shapes)
    names = (name for marks, name in OTHERS if any(mark in key for key in listed for mark in marks))
    if name := next(names, "a textual inversion" if is_word(shapes) else None):
        raise MinisdError(f"this is {name}, not a checkpoint", where,
                          remedy=WAYS.get(name, "give a model that it belongs to"))
    raise MinisdError("no part of a Stable Diffusion model is recognised", where,
                      f"its {len(listed)} keys begin with {', '.join(map(ascii, listed[:3]))}"[:300],
                      "give a checkpoint, or a UNet, VAE, text encoder or ControlNet alone")


def is_word(shapes: Shapes) -> bool:
    """Whether these are some vectors under a word's name, or under those of SDXL's two encoders."""
    words = len(shapes) == 1 or shapes.keys() == {"clip_l", "clip_g"}
    return words and all("." not in key and len(shape) in (1, 2) for key, shape in shapes.items())


class Kind(NamedTuple):
    """Of one part: its rows, how its config is read from shapes in our names, and a config no checkpoint exceeds."""

    rows: Callable[..., list[Row]]
    infer: Callable[[Shapes], Any]
    generous: Callable[[int, int], Any]


def config_of(part: str, dialect: str, shapes: Shapes) -> Any:
    """The config that shapes tell. What they do not tell (heads, groups, activation) is as in the part's family."""
    kind = KINDS[part]
    numbers = {word for key in shapes for word in key.split(".") if word.isdecimal() and len(word) < 3}
    depth = 1 + max(map(int, numbers), default=0)
    ours = max((renamed(kind.rows(kind.generous(layers, depth), dialect), shapes) for layers in layers_of(shapes)),
               key=len)
    try:
        return kind.infer(ours)
    except (KeyError, IndexError, ValueError) as error:
        raise MinisdError(f"the {part} has no shape that is known", why=f"{type(error).__name__}: {error}"[:200],
                          remedy="check that the file is whole") from error


def layers_of(shapes: Shapes) -> Sequence[Any]:
    """What is tried as residual blocks per stage: in LDM's UNet, where blocks and resizes share one list, those counted
    between the resizes if stages differ."""
    counts = [0]
    for n in count(1):
        if f"input_blocks.{n}.0.op.weight" in shapes:
            counts.append(0)
        elif f"input_blocks.{n}.0.in_layers.0.weight" in shapes:
            counts[-1] += 1
        else:
            break
    return [(*counts, *[1] * (STAGES - len(counts)))] if len(set(counts)) > 1 else range(1, 5)


def renamed(rows: Iterable[Row], shapes: Shapes) -> Shapes:
    """Shapes under our names, as far as the rows know the keys; of tensors joined in one, all get its shape."""
    return {ours: shapes[row.theirs[-1]] for row in rows if row.ours and row.theirs[-1] in shapes for ours in row.ours}


def how_many(shapes: Shapes, name: str) -> int:
    """How many there are of a name with a number in it, from 0 on."""
    return len(list(takewhile(lambda n: name.format(n) in shapes, count())))


def infer_unet(shapes: Shapes) -> UNetConfig:
    """From the way down alone, so that a ControlNet has one too."""
    stages = range(how_many(shapes, "down.{}.res.0.conv1.weight"))
    depths = tuple(how_many(shapes, f"down.{i}.attn.0.layers.{{}}.norm1.weight") for i in stages)
    stage = next((f"down.{i}.attn.0" for i in stages if depths[i]), "mid.attn.0")
    layers = tuple(how_many(shapes, f"down.{i}.res.{{}}.conv1.weight") for i in stages)
    linear = len(shapes[f"{stage}.proj_in.weight"]) == 2
    return replace(
        SD15, in_channels=shapes["conv_in.weight"][1], linear_proj=linear,
        out_channels=shapes.get("conv_out.weight", (4,))[0],
        widths=tuple(shapes[f"down.{i}.res.0.conv1.weight"][0] for i in stages), depths=depths,
        layers=layers[0] if len(set(layers)) == 1 else layers,
        mid_depth=how_many(shapes, "mid.attn.0.layers.{}.norm1.weight") or None,
        heads=None if linear else 8, head_dim=64 if linear else None,
        context_dim=shapes[f"{stage}.layers.0.cross_attn.k.weight"][1],
        label_dim=shapes["label.in_proj.weight"][1] if "label.in_proj.weight" in shapes else None)


def infer_vae(shapes: Shapes) -> VAEConfig:
    stages = range(how_many(shapes, "encoder.down.{}.res.0.conv1.weight"))
    return VAEConfig(channels=shapes["encoder.conv_in.weight"][1], latent_channels=shapes["decoder.conv_in.weight"][1],
                     widths=tuple(shapes[f"encoder.down.{i}.res.0.conv1.weight"][0] for i in stages),
                     layers=how_many(shapes, "encoder.down.0.res.{}.conv1.weight"))


def infer_text(shapes: Shapes) -> CLIPTextConfig:
    """OpenAI's tower; OpenCLIP's is told by its width (its activation and padding are as in SD2)."""
    vocab, width = shapes["token.weight"]
    family = CLIPTextConfig() if width < CLIP_H.width else replace(CLIP_H, skipped_layers=0)
    return replace(family, vocab_size=vocab, width=width, window=shapes["position.weight"][0],
                   heads=max(width // 64, 1), depth=how_many(shapes, "layers.{}.norm1.weight"),
                   projection_dim=shapes["projection.weight"][0] if "projection.weight" in shapes else None)


def infer_vision(shapes: Shapes) -> CLIPVisionConfig:
    width, _, patch, _ = shapes["patch.weight"]
    side = round((shapes["position.weight"][0] - 1) ** 0.5)
    return CLIPVisionConfig(side * patch, patch, width, how_many(shapes, "layers.{}.norm1.weight"), width // 64,
                            projection_dim=shapes["projection.weight"][0])


def wide_unet(layers: Any, depth: int) -> UNetConfig:
    return replace(SD15, widths=(320,) * STAGES, depths=(min(depth, 12),) * STAGES, mid_depth=12, layers=layers,
                   label_dim=1)


KINDS = {
    "unet": Kind(unet.rows, infer_unet, wide_unet), "controlnet": Kind(controlnet.rows, infer_unet, wide_unet),
    "vae": Kind(vae.rows, infer_vae, lambda layers, _: VAEConfig(widths=(32,) * 6, layers=layers)),
    "text": Kind(clip.text_rows, infer_text, lambda _, depth: CLIPTextConfig(depth=depth, projection_dim=1)),
    "vision": Kind(clip.vision_rows, infer_vision, lambda _, depth: CLIPVisionConfig(depth=depth)),
}


def family_of(cfg: UNetConfig) -> str:
    """In words: the preset's, or the one that a shape of no name is akin to."""
    kin = ("SDXL-like" if cfg.label_dim else "SD2-like") if cfg.linear_proj else "SD1-like"
    return FAMILIES.get(preset_of(cfg) or "", kin)


def preset_of(cfg: UNetConfig) -> str | None:
    """The preset of a UNet, if it has a name."""
    return next((name for name, preset in KNOWN.items() if preset == cfg), None)
