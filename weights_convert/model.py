"""A checkpoint that was understood: its parts, each with config, dialect and tensors, not yet translated."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from minisd import schema
from minisd.config import ModelConfig, text_parts
from minisd.errors import BAD_FILE, USAGE, MinisdError
from weights_convert.detect import KINDS, UNDRAWN, config_of, family_of, part_of, preset_of, refuse_others
from weights_convert.mapped import Seen
from weights_convert.tables import Row
from weights_convert.tables.unet import LABELLED
from weights_convert.translate import from_ours, to_ours

HF_TEXT, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
BASE_SIZE = {"epsilon": 512, "v": 768}            # pixels of the SD2.x models that predict so
STATED = "minisd.config"                          # in the metadata of files that we write
T = TypeVar("T")
PENULTIMATE = 24  # layers of OpenCLIP's ViT-H, whose last one SD2 leaves out

@dataclass(frozen=True)
class Part:
    """One network of a checkpoint, as it stands there."""

    name: str
    dialect: str
    cfg: Any                                      # UNetConfig, VAEConfig, CLIPTextConfig, ...
    tensors: Mapping[str, Tensor]
    where: str = ""                               # the file or folder

    @property
    def kind(self) -> str:
        return self.name.removesuffix("_2")

    def rows(self, dialect: str) -> list[Row]:
        return KINDS[self.kind].rows(self.cfg, dialect)

    def ours(self) -> dict[str, Tensor]:
        """Its tensors under our names and in our layouts; a stray or missing key is an error."""
        try:
            return to_ours(self.tensors, self.rows(self.dialect))
        except MinisdError as error:
            error.where = f"{self.where}: the {self.name}, in {self.dialect} names"
            raise

    def left_out(self, prefix: str) -> dict[str, Tensor]:
        """What the table knows and the model does not use; `prefix` is what its keys have in a single file."""
        return {prefix + name: self.tensors[name] for row in self.rows(self.dialect) if not row.ours
                for name in row.theirs if name in self.tensors}


@dataclass(frozen=True)
class Model:
    """All that a source holds. `left_out` is carried along unread, under the names of a single file."""

    where: str
    layout: str                                   # native, ldm, diffusers
    parts: Mapping[str, Part]
    cfg: ModelConfig
    files: tuple[Seen, ...]                       # that its tensors lie in
    left_out: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    predicts: bool = True                         # whether it is known what the UNet predicts
    defaults: Mapping[str, Any] = field(default_factory=dict)  # what a native folder says that the model likes

    @property
    def whole(self) -> bool:
        return {"unet", "vae", "text"} <= self.parts.keys()

    @property
    def preset(self) -> str:
        """The name of the UNet's shape, or nothing."""
        steered = self.parts.get("unet") or self.parts.get("controlnet")
        return (preset_of(steered.cfg) or "") if steered else ""

    @property
    def family(self) -> str:
        """In words: a whole checkpoint's, or which part it is and of what."""
        steered = self.parts.get("unet") or self.parts.get("controlnet")
        family = family_of(steered.cfg) if steered else ""
        what = "checkpoint" if self.whole else " and ".join(self.parts) + " alone"
        return f"{family} {what}".strip()

    def check_unchanged(self) -> None:
        """Stops if a file was written to or replaced since it was opened."""
        for file in self.files:
            file.check_unchanged()

    def predicting(self, prediction: str | None) -> "Model":
        """The model with what the user says that its UNet predicts."""
        if prediction is None:
            return self
        size = BASE_SIZE.get(prediction, 512) if not self.predicts else self.cfg.size
        return replace(self, predicts=True, cfg=replace(self.cfg, prediction=prediction,  # type: ignore[arg-type]
                                                         size=size))

    def must_be_drawable(self) -> None:
        """Refuses what minisd cannot draw with, by its name."""
        if self.preset in UNDRAWN or "text_2" in self.parts:
            article = "an" if self.family[0] in "SA" else "a"
            raise MinisdError(f"this is {article} {self.family}", self.where,
                              "its keys are known, but minisd does not draw with it",
                              "give a checkpoint of SD1.x or SD2.x, or a pruned one")

    def must_be_decided(self) -> None:
        """Refuses to guess what the UNet predicts."""
        if not self.predicts:
            raise MinisdError("SD2.x: does the UNet predict epsilon or v?", self.where,
                              "a single file does not say it", "--prediction v for models of 768 pixels, "
                              "--prediction epsilon for the base models of 512", USAGE)


def recognised(tensors: Mapping[str, Tensor], prefix: str, where: str, name: str = "") -> Part:
    """One part of a file, its config inferred; `name` is what it has to be, where that is known."""
    kind, dialect = part_of(tensors) or ("", "")
    if not kind or (name and kind != name.removesuffix("_2")):
        refuse_others({prefix + key: tuple(tensor.shape) for key, tensor in tensors.items()}, where)
    cfg = config_of(kind, dialect, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    if dialect == "openclip":
        cfg = replace(cfg, activation="gelu", pad="zero", skipped_layers=int(cfg.depth == PENULTIMATE))
    return Part(name or kind, dialect, cfg, tensors, where)


def set_aside(part: Part) -> tuple[Part, dict[str, Tensor]]:
    """A text tower without what its states leave out, and that, under the names of a single file."""
    cfg = replace(part.cfg, depth=part.cfg.depth - part.cfg.skipped_layers, skipped_layers=0, projection_dim=None)
    kept, ours = {name for row in KINDS["text"].rows(cfg, "ours") for name in row.ours}, part.ours()
    rows = [row for row in part.rows("openclip") if row.ours and row.ours[0] not in kept]
    left = from_ours({name: ours[name] for row in rows for name in row.ours}, rows)
    return (replace(part, cfg=cfg, dialect="ours", tensors={name: ours[name] for name in kept}),
            {OPENCLIP + name: tensor for name, tensor in left.items()})


def restored(part: Part, left_out: Mapping[str, Tensor]) -> tuple[Part, dict[str, Tensor]]:
    """A text tower with what was set aside, and what is left of that."""
    left = {name.removeprefix(OPENCLIP): tensor for name, tensor in left_out.items() if name.startswith(OPENCLIP)}
    if not left:
        return part, dict(left_out)
    layers = {name.split(".")[2] for name in left if ".resblocks." in name}
    projection = left.get("text_projection")
    cfg = replace(part.cfg, depth=part.cfg.depth + len(layers), skipped_layers=len(layers),
                  projection_dim=None if projection is None else projection.shape[1])
    rows = [row for row in KINDS["text"].rows(cfg, "openclip") if row.ours and left.keys() >= set(row.theirs)]
    taken = {name: left[name] for row in rows for name in row.theirs}
    return (replace(part, cfg=cfg, dialect="ours", tensors=part.ours() | to_ours(taken, rows)),
            {name: tensor for name, tensor in left_out.items() if name.removeprefix(OPENCLIP) not in taken})


def own_configs(cfg: ModelConfig) -> dict[str, Any]:
    """The config of every part."""
    return {"unet": cfg.unet, "controlnet": cfg.unet, "vae": cfg.vae, **text_parts(cfg.text),
            **({} if cfg.vision is None else {"vision": cfg.vision})}


def with_parts(model: Model) -> Model:
    """The model with the config that its parts' make; SD2.x exists as epsilon and as v, alike in every shape."""
    told = {name: part.cfg for name, part in model.parts.items()}
    texts = tuple(told[name] for name in ("text", "text_2") if name in told)
    pooled = model.cfg.pooled_label or any(part.dialect == LABELLED for part in model.parts.values())
    cfg = replace(model.cfg, unet=told.get("unet", told.get("controlnet", model.cfg.unet)),
                  vae=told.get("vae", model.cfg.vae), text=texts or model.cfg.text, pooled_label=pooled)
    return replace(model, cfg=cfg, predicts="unet" not in told or not cfg.unet.linear_proj or bool(cfg.unet.label_dim))


def parsed(text: str | bytes, where: str, remedy: str = "") -> dict[str, Any]:
    """A stranger's JSON object, of which nothing else is believed yet."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MinisdError("the JSON cannot be read", where, str(error)[:200], remedy) from error
    if not isinstance(data, dict):
        raise MinisdError("not a JSON object", where, remedy=remedy)
    return data


def stated(metadata: Mapping[str, str], where: str) -> ModelConfig | None:
    """The config of the model in a file of ours."""
    told = parsed(metadata[STATED], f"{where}: {STATED} in its metadata") if STATED in metadata else None
    return told if told is None else structured(ModelConfig, told, where)


def structured(cls: type[T], told: Any, where: str) -> T:
    """A config of ours, strictly read."""
    try:
        return schema.read(cls, told, where)
    except MinisdError as error:
        error.code = BAD_FILE                     # in a recipe it would be the user's own words, this is a file
        raise
