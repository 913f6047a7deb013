"""Checkpoints as they are found, recognised by their contents: files here, folders in `folders`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from minisd.config import ModelConfig
from minisd.errors import USAGE, MinisdError
from weights_convert import folders
from weights_convert.model import HF_TEXT, Model, own_configs, recognised, stated, with_parts
from weights_convert.read import read_file

PREDICTS = ("modelspec.prediction_type", "modelspec.predict_key")  # in those of kohya's trainers, and of ComfyUI
V_KEY = "v_pred"                                  # an empty tensor in ComfyUI's files of models that predict v
PREFIXES = {
    "model.diffusion_model.": "unet", "first_stage_model.": "vae", "control_model.": "controlnet",
    "cond_stage_model.transformer.": "text", "cond_stage_model.model.": "text",
    "conditioner.embedders.0.transformer.": "text", "conditioner.embedders.0.model.": "text",
    "conditioner.embedders.1.model.": "text_2",
}
EMA, EMA_UNET, OF_TRAINING = "model_ema.", "model_ema.diffusion_model", ("loss.", "first_stage_model.loss.")
UNREAD = {  # known, and not needed: marks, counts, what follows from the noise levels, what SD1's text does not use
    V_KEY, "scale_factor", "cond_stage_model.logit_scale", "cond_stage_model.text_projection",
    f"{HF_TEXT}text_model.embeddings.position_ids",
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "logvar", "lvlb_weights",
}


def open_model(source: str | Path, prediction: str | None = None, ema: bool = False) -> Model:
    """What a source holds; tensors are mapped, not read. `prediction` is believed over what the source says."""
    path = Path(source)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise MinisdError("the source cannot be looked at", str(path)[:200], error.strerror or str(error)) from error
    if is_folder and ema:
        raise MinisdError("no EMA copies", str(path), "only single files hold both", "leave out --ema", USAGE)
    model = folders.from_folder(path) if is_folder else from_file(path, ema)
    return model.predicting(prediction)


def from_file(path: Path, ema: bool) -> Model:
    """An LDM checkpoint, or a part alone in any dialect."""
    file = read_file(path)
    tensors, notes = dict(file.tensors), list(file.notes)
    copies = {key: tensors.pop(key) for key in list(tensors) if key.startswith(EMA)}
    training = [tensors.pop(key) for key in list(tensors) if key.startswith(OF_TRAINING)]
    if training:
        notes.append(f"{len(training)} tensors of the training loss are ignored")
    left_out = {key: tensors.pop(key) for key in UNREAD & tensors.keys()}
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")
        groups.setdefault(prefix, {})[key.removeprefix(prefix)] = tensor
    if "" in groups and len(groups) > 1:
        strays = sorted(groups[""])
        raise MinisdError(f"{len(strays)} keys belong to no part of the model", str(path), ", ".join(strays[:10]))
    if "model.diffusion_model." in groups:
        unet = groups["model.diffusion_model."]
        unet |= averaged(unet, copies, str(path)) if ema else {}
        if copies and not ema:
            notes.append(f"{len(copies)} EMA copies are left out: the weights as trained are taken, unless --ema")
    elif ema:
        averaged({}, {}, str(path))
    parts = {}
    for prefix, group in groups.items():
        part = recognised(group, prefix, str(path), PREFIXES.get(prefix, ""))
        parts[part.name] = part
        left_out |= part.left_out(prefix)
    return as_stated(Model(str(path), "ldm", parts, ModelConfig(), (file.seen,), left_out, tuple(notes)), file.metadata)


def averaged(unet: Mapping[str, Tensor], copies: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The UNet's EMA copies; their names have lost their dots."""
    names = {key: EMA_UNET + key.replace(".", "") for key in unet}
    missing = [key for key, name in names.items() if name not in copies]
    if missing or not unet:
        raise MinisdError(f"no EMA copies of {len(missing) or 'all'} tensors", where, ", ".join(missing[:10]),
                          "leave out --ema", USAGE)
    return {key: copies[name] for key, name in names.items()}


def as_stated(model: Model, metadata: Mapping[str, str]) -> Model:
    """The configs that a file of ours states, which know more than shapes; of others, what the shapes say."""
    if (cfg := stated(metadata, model.where)) is None:
        predicts = "v" if V_KEY in model.left_out else next(filter(None, map(metadata.get, PREDICTS)), None)
        return with_parts(model).predicting(predicts if predicts in ("epsilon", "v") else None)
    own = own_configs(cfg)
    parts = {name: replace(part, cfg=own.get(name, part.cfg)) for name, part in model.parts.items()}
    return replace(model, parts=parts, cfg=cfg)
