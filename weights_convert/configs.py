"""Configs as diffusers and transformers write them, from ours and back; what we cannot compute is refused."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from minisd.config import CLIPTextConfig, ModelConfig, UNetConfig, VAEConfig
from minisd.errors import MinisdError
from minisd.samplers.schedule import NoiseTable

Json = dict[str, Any]
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
PIPELINES = {4: "StableDiffusionPipeline", 9: "StableDiffusionInpaintPipeline",
             8: "StableDiffusionInstructPix2PixPipeline"}
STEERED = "StableDiffusionControlNetPipeline"
CLASSES = {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL"),
           "text": ("transformers", "CLIPTextModel"), "controlnet": ("diffusers", "ControlNetModel")}
FOLDERS = {"unet": "unet", "vae": "vae", "text": "text_encoder", "text_2": "text_encoder_2",
           "controlnet": "controlnet"}
ABSENT = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that do not draw
VERSION = {"_diffusers_version": "0.27.0"}
# What our models compute, and the only value that each of these may have.
FIXED: dict[str, Json] = {
    "unet": {"act_fn": "silu", "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False,
             "resnet_time_scale_shift": "default", "dual_cross_attention": False, "only_cross_attention": False,
             "class_embed_type": None, "encoder_hid_dim": None, "time_embedding_type": "positional",
             "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default", "downsample_padding": 1,
             "mid_block_scale_factor": 1, "num_class_embeds": None, "time_cond_proj_dim": None},
    "vae": {"act_fn": "silu", "mid_block_add_attention": True, "use_quant_conv": True, "use_post_quant_conv": True},
    "text": {"layer_norm_eps": 1e-5},
}
FIXED["controlnet"] = FIXED["unet"]
POOLED = "projection"                             # the class that is a vector, brought in by two linears
SIZED: Json = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}


def unet_json(cfg: UNetConfig, size: int, pooled_label: bool = False) -> Json:
    """diffusers' config of a UNet; its `attention_head_dim` is really the number of heads."""
    heads = [cfg.heads_at(width) for width in cfg.widths]
    depths = [*(depth or 1 for depth in cfg.depths[:-1]), cfg.depths[-1] or cfg.mid_depth or 1]
    if cfg.depths[-1] and cfg.mid_depth not in (None, cfg.depths[-1]):
        raise MinisdError(f"a mid block of {cfg.mid_depth} layers below a stage of {cfg.depths[-1]}",
                          why="diffusers' configs give both the same depth", remedy="write it --to native or ldm")
    return VERSION | {
        "_class_name": CLASSES["unet"][1], "sample_size": size, "in_channels": cfg.in_channels,
        "out_channels": cfg.out_channels, "block_out_channels": list(cfg.widths),
        "layers_per_block": cfg.layers if isinstance(cfg.layers, int) else list(cfg.layers),
        "norm_num_groups": cfg.groups, "cross_attention_dim": cfg.context_dim, "attention_head_dim":
        cfg.heads or heads, "use_linear_projection": cfg.linear_proj,
        "transformer_layers_per_block": depths if any(depth > 1 for depth in depths) else 1,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in cfg.depths],
        "mid_block_type": None if cfg.mid_depth is None else "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(cfg.depths)],
    } | FIXED["unet"] | label_json(cfg, pooled_label)


def label_json(cfg: UNetConfig, pooled: bool) -> Json:
    """Which of diffusers' two labels a UNet takes: the pooled text as a class, or SDXL's of pooled text and sizes."""
    if cfg.label_dim is None:
        return {}
    kind = {"class_embed_type": POOLED} if pooled else SIZED
    return kind | {"projection_class_embeddings_input_dim": cfg.label_dim}


def controlnet_json(cfg: UNetConfig, hints: list[int]) -> Json:
    """diffusers' config of a ControlNet for such a UNet."""
    left = ("sample_size", "out_channels", "up_block_types", "center_input_sample", "dual_cross_attention",
            "time_embedding_type", "conv_in_kernel", "conv_out_kernel", "time_cond_proj_dim")
    whole = {name: value for name, value in unet_json(cfg, 64).items() if name not in left}
    return whole | {"_class_name": CLASSES["controlnet"][1], "conditioning_embedding_out_channels": hints}


def vae_json(cfg: VAEConfig, scale: float, size: int) -> Json:
    stages = len(cfg.widths)
    return VERSION | {
        "_class_name": CLASSES["vae"][1], "act_fn": "silu", "in_channels": cfg.channels, "out_channels": cfg.channels,
        "latent_channels": cfg.latent_channels, "block_out_channels": list(cfg.widths),
        "layers_per_block": cfg.layers, "norm_num_groups": cfg.groups, "scaling_factor": scale, "sample_size": size,
        "down_block_types": ["DownEncoderBlock2D"] * stages, "up_block_types": ["UpDecoderBlock2D"] * stages,
    }


def text_json(cfg: CLIPTextConfig) -> Json:
    """transformers' config of the text tower: layers that the states leave out are left out."""
    return {
        "architectures": [CLASSES["text"][1]], "model_type": "clip_text_model", "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width, "intermediate_size": 4 * cfg.width, "num_attention_heads": cfg.heads,
        "num_hidden_layers": cfg.depth - cfg.skipped_layers, "max_position_embeddings": cfg.window,
        "hidden_act": cfg.activation, "layer_norm_eps": 1e-5, "projection_dim": cfg.projection_dim or cfg.width,
        "bos_token_id": cfg.vocab_size - 2, "eos_token_id": cfg.vocab_size - 1,
        "pad_token_id": cfg.vocab_size - 1 if cfg.pad == "end" else 0,
    }


def scheduler_json(cfg: ModelConfig) -> Json:
    """SD1's PNDM, or DDIM for a v prediction as in SD2.1; both end at the first trained level."""
    pndm = cfg.prediction == "epsilon"
    return VERSION | {
        "_class_name": "PNDMScheduler" if pndm else "DDIMScheduler", "num_train_timesteps": cfg.noise.steps,
        "beta_start": cfg.noise.beta_start, "beta_end": cfg.noise.beta_end, "beta_schedule": BETAS[cfg.noise.betas],
        "prediction_type": PREDICTIONS[cfg.prediction], "set_alpha_to_one": False, "steps_offset": 1,
    } | ({"skip_prk_steps": True} if pndm else {"clip_sample": False})


def index_json(cfg: ModelConfig, names: Iterable[str]) -> Json:
    """What says which parts a pipeline is made of."""
    parts = {FOLDERS[part]: list(CLASSES[part]) for part in names if part in CLASSES}
    name = STEERED if "controlnet" in parts else PIPELINES.get(cfg.unet.in_channels, PIPELINES[4])
    return VERSION | {
        "_class_name": name, **parts,
        "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", scheduler_json(cfg)["_class_name"]],
        "requires_safety_checker": False, **{name: [None, None] for name in ABSENT},
    }


# ---------------------------------------------------------------- back
def allowed(part: str, json: Mapping[str, Any], where: str) -> None:
    """Refuses a config that asks for what our models do not compute."""
    odd = [f"{name} {json[name]!r}" for name, value in FIXED[part].items() if json.get(name, value) != value]
    if odd:
        raise MinisdError(f"this {part} is of a kind that is not known here", where, ", ".join(odd)[:300])


def unet_told(cfg: UNetConfig, json: Mapping[str, Any], where: str) -> UNetConfig:
    """What shapes do not tell: the groups of the norms and the heads."""
    pooled = json.get("class_embed_type") == POOLED and not json.get("class_embeddings_concat")
    allowed("unet", {**json, "class_embed_type": None} if pooled else json, where)
    heads = json.get("num_attention_heads") or json.get("attention_head_dim", 8)
    counts = [heads] * len(cfg.widths) if isinstance(heads, int) else list(heads)
    cfg = replace(cfg, groups=json.get("norm_num_groups", 32))
    if len(set(counts)) == 1:
        return replace(cfg, heads=counts[0], head_dim=None)
    sizes = {width // count for width, count in zip(cfg.widths, counts, strict=True)}
    if len(sizes) > 1:
        raise MinisdError("neither the heads nor their size is the same in every stage", where, f"heads {counts}")
    return replace(cfg, heads=None, head_dim=sizes.pop())


def vae_told(cfg: VAEConfig, json: Mapping[str, Any], where: str) -> VAEConfig:
    allowed("vae", json, where)
    return replace(cfg, groups=json.get("norm_num_groups", 32))


def text_told(cfg: CLIPTextConfig, json: Mapping[str, Any], where: str) -> CLIPTextConfig:
    """Heads and activation; transformers leaves out what its defaults are."""
    allowed("text", json, where)
    activation = json.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise MinisdError("this text encoder is of a kind that is not known here", where, f"hidden_act {activation!r}")
    return replace(cfg, heads=json.get("num_attention_heads", 8), activation=activation)


def scheduler_told(cfg: ModelConfig, json: Mapping[str, Any], where: str) -> ModelConfig:
    """The noise levels and what the UNet predicts; a config that says nothing means epsilon."""
    ours = {theirs: name for name, theirs in PREDICTIONS.items()}
    betas = {theirs: name for name, theirs in BETAS.items()}
    predicts, schedule = json.get("prediction_type", "epsilon"), json.get("beta_schedule", "scaled_linear")
    if predicts not in ours or schedule not in betas or json.get("rescale_betas_zero_snr") or json.get("trained_betas"):
        raise MinisdError("this scheduler's noise levels are not known here", where,
                          f"prediction_type {predicts!r}, beta_schedule {schedule!r}; or zero-SNR, or trained betas")
    table = NoiseTable(json.get("beta_start", 0.00085), json.get("beta_end", 0.012),
                       json.get("num_train_timesteps", 1000), betas[schedule])  # type: ignore[arg-type]
    return replace(cfg, noise=table, prediction=ours[predicts])  # type: ignore[arg-type]
