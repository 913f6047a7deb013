"""The models of diffusers and transformers beside ours: of the same config, with our weights by our key tables."""

from typing import TypeVar

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from minisd.clip import CLIPText, CLIPVision
from minisd.config import UNetConfig
from minisd.store import Blank
from minisd.unet import UNet
from minisd.vae import VAE
from weights_convert.tables import Row, clip, unet, vae
from weights_convert.translate import from_ours

Peer = TypeVar("Peer", bound=nn.Module)


def label_features(cfg: UNetConfig) -> int:
    """SDXL's label is the pooled text, then 6 numbers about sizes as this many time features each."""
    return 256 if cfg.label_dim == 2816 else 8


def unet_like(ours: UNet) -> UNet2DConditionModel:
    cfg = ours.cfg
    label = {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": cfg.label_dim,
             "addition_time_embed_dim": label_features(cfg)} if cfg.label_dim else {}
    with Blank():
        theirs = UNet2DConditionModel(
            in_channels=cfg.in_channels, out_channels=cfg.out_channels, block_out_channels=cfg.widths,
            layers_per_block=cfg.layers, norm_num_groups=cfg.groups, cross_attention_dim=cfg.context_dim,
            attention_head_dim=tuple(map(cfg.heads_at, cfg.widths)),  # really the number of heads
            use_linear_projection=cfg.linear_proj,
            transformer_layers_per_block=(*(n or 1 for n in cfg.depths[:-1]), cfg.mid_depth or cfg.depths[-1]),
            down_block_types=tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in cfg.depths),
            mid_block_type="UNetMidBlock2DCrossAttn" if cfg.mid_depth else None,
            up_block_types=tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(cfg.depths)),
            **label)
    return carry(ours, theirs, unet.rows(cfg, "diffusers"))


def vae_like(ours: VAE) -> AutoencoderKL:
    cfg, stages = ours.cfg, len(ours.cfg.widths)
    with Blank():
        theirs = AutoencoderKL(
            in_channels=cfg.channels, out_channels=cfg.channels, latent_channels=cfg.latent_channels,
            block_out_channels=cfg.widths, layers_per_block=cfg.layers, norm_num_groups=cfg.groups,
            down_block_types=("DownEncoderBlock2D",) * stages, up_block_types=("UpDecoderBlock2D",) * stages)
    return carry(ours, theirs, vae.rows(cfg, "diffusers"))


def text_like(ours: CLIPText) -> CLIPTextModel | CLIPTextModelWithProjection:
    """The end token is the last of the vocabulary, as in CLIP's own."""
    cfg = ours.cfg
    theirs = CLIPTextConfig(
        vocab_size=cfg.vocab_size, bos_token_id=cfg.vocab_size - 2, eos_token_id=cfg.vocab_size - 1,
        hidden_size=cfg.width, intermediate_size=4 * cfg.width, num_hidden_layers=cfg.depth,
        num_attention_heads=cfg.heads, max_position_embeddings=cfg.window, hidden_act=cfg.activation,
        projection_dim=cfg.projection_dim or cfg.width)
    with Blank():
        model = CLIPTextModelWithProjection(theirs) if cfg.projection_dim else CLIPTextModel(theirs)
    return carry(ours, model, clip.text_rows(cfg, "hf" if cfg.projection_dim else "hf-bare"))


def vision_like(ours: CLIPVision) -> CLIPVisionModelWithProjection:
    cfg = ours.cfg
    with Blank():
        theirs = CLIPVisionModelWithProjection(CLIPVisionConfig(
            hidden_size=cfg.width, intermediate_size=4 * cfg.width, num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.heads, image_size=cfg.image_size, patch_size=cfg.patch, hidden_act=cfg.activation,
            projection_dim=cfg.projection_dim))
    return carry(ours, theirs, clip.vision_rows(cfg, "hf"))


def carry(ours: nn.Module, theirs: Peer, rows: list[Row]) -> Peer:
    """Our weights, not copies of them, into the reference, strictly."""
    theirs.load_state_dict(from_ours(ours.state_dict(), rows), assign=True)
    return theirs.requires_grad_(False).eval()
