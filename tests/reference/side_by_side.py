"""Our models and the reference's on the same inputs: every module, every block, every site, and the outputs.

Each comparison returns the largest difference found, relative to the largest value of its tensor, or fails at the
first layer, in the order of our forward pass, that differs by more than the tolerance.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comparison import assert_close, assert_same_layers, paired, recorded
from reference.peers import label_features
from torch import Tensor, nn

from minisd.config import CLIPTextConfig, UNetConfig
from minisd.layers import timestep_features
from minisd.sites import Sites, unet_sites
from weights_convert.tables import HF, clip, unet, vae

SMALL = 1e-3  # a gain with which the variance inside a network is about the eps of its norms


def normal(*shape: int, seed: int = 1, gain: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * gain


# ---------------------------------------------------------------- UNet
@dataclass
class Inputs:
    """Random inputs of a UNet, for both libraries."""

    x: Tensor
    t: Tensor
    context: Tensor
    label: Tensor | None = None
    add: dict[str, Tensor] = field(default_factory=dict)      # at our sites
    theirs: dict[str, Any] = field(default_factory=dict)      # what diffusers' forward takes besides

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Time stays as it is, and so do SDXL's numbers about sizes."""
        return replace(self, x=self.x.to(dtype), context=self.context.to(dtype))


def unet_inputs(cfg: UNetConfig, height: int = 8, width: int = 8, batch: int = 2, gain: float = 1.0) -> Inputs:
    made = Inputs(normal(batch, cfg.in_channels, height, width, gain=gain), torch.linspace(999, 17, batch).long(),
                  normal(batch, 7, cfg.context_dim, seed=2, gain=gain))
    if cfg.label_dim is not None:
        features = label_features(cfg)
        pooled = normal(batch, cfg.label_dim - 6 * features, seed=3, gain=gain)
        sizes = torch.tensor([[512.0, 384, 0, 16, 512, 256]]).expand(batch, 6)
        of_sizes = timestep_features(sizes.flatten(), features).unflatten(0, (batch, 6)).flatten(1)
        made.label = torch.cat([pooled, of_sizes], dim=1)
        made.theirs = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    return made


def compare_unets(ours: nn.Module, theirs: nn.Module, given: Inputs, tolerance: float) -> float:
    cfg = ours.cfg
    pairs = paired(unet.rows(cfg, "diffusers"), unet.blocks(cfg), HF)
    named = their_sites(cfg)
    sites = Sites(given.add, keep=tuple(unet_sites(cfg, 8, 8)))
    skips: list[Tensor] = []
    handles = keep_skips(theirs, skips)
    with recorded(ours, pairs) as ran, recorded(theirs, {*pairs.values(), *named.values()}) as reference:
        y = ours(given.x, given.t, given.context, given.label, sites)
        expected = theirs(given.x, given.t, given.context, **given.theirs).sample
    for handle in handles:
        handle.remove()
    assert ran.keys() == pairs.keys(), f"never run: {pairs.keys() - ran.keys()}"
    worst = [assert_same_layers(ran, reference, pairs, tolerance)]
    at_sites = {site: reference[name] + given.add.get(site, 0) for site, name in named.items()}
    at_sites |= {f"skip.{n}": skip for n, skip in enumerate(reversed(skips))}
    worst += [assert_close(f"site {site}", sites.kept[site], tensor, tolerance) for site, tensor in at_sites.items()]
    return max(*worst, assert_close("output", y, expected, tolerance))


def their_sites(cfg: UNetConfig) -> dict[str, str]:
    """diffusers' module whose output is at each of our sites; the skips are inputs, see `keep_skips`."""
    named = {"conv_in": "conv_in"}
    for i, depth in enumerate(cfg.depths):
        named[f"down.{i}"] = f"down_blocks.{i}.{'attentions' if depth else 'resnets'}.{cfg.layers_at(i) - 1}"
        if i < len(cfg.widths) - 1:
            named[f"down.{i}.downsample"] = f"down_blocks.{i}.downsamplers.0"
        named[f"up.{i}"] = f"up_blocks.{i}"
    return named | ({} if cfg.mid_depth is None else {"mid": "mid_block"})


def keep_skips(model: nn.Module, kept: list[Tensor]) -> list[Any]:
    """Hooks that keep the skips as diffusers' up blocks receive them, the innermost first."""
    def hook(_module, _args, kwargs) -> None:
        kept.extend(reversed(kwargs["res_hidden_states_tuple"]))
    return [block.register_forward_pre_hook(hook, with_kwargs=True) for block in model.up_blocks]


# ---------------------------------------------------------------- autoencoder
def compare_encoders(ours: nn.Module, theirs: nn.Module, x: Tensor, tolerance: float) -> float:
    pairs = half("encoder", ours)
    with recorded(ours, pairs) as ran, recorded(theirs, pairs.values()) as reference:
        posterior, expected = ours.encode(x), theirs.encode(x).latent_dist
    assert ran.keys() == pairs.keys()
    return max(assert_same_layers(ran, reference, pairs, tolerance),
               assert_close("mean", posterior.mean, expected.mean, tolerance),
               assert_close("logvar", posterior.logvar, expected.logvar, tolerance))


def compare_decoders(ours: nn.Module, theirs: nn.Module, z: Tensor, tolerance: float) -> float:
    pairs = half("decoder", ours)
    with recorded(ours, pairs) as ran, recorded(theirs, pairs.values()) as reference:
        y, expected = ours.decode(z), theirs.decode(z).sample
    assert ran.keys() == pairs.keys()
    return max(assert_same_layers(ran, reference, pairs, tolerance), assert_close("picture", y, expected, tolerance))


def half(name: str, ours: nn.Module) -> dict[str, str]:
    pairs = paired(vae.rows(ours.cfg, "diffusers"), vae.blocks(ours.cfg), HF)
    return {one: other for one, other in pairs.items() if one.startswith(name)}


# ---------------------------------------------------------------- CLIP
def words(cfg: CLIPTextConfig, tokens: int = 77) -> Tensor:
    """Three prompts: one as SD1 pads it, with end tokens, one as SD2, with zeros, and one that fills the window."""
    start, end = cfg.vocab_size - 2, cfg.vocab_size - 1
    ids = torch.randint(1, start, (3, tokens), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = start, end
    ids[0, 4:], ids[1, 6], ids[1, 7:] = end, end, 0
    return ids


def compare_texts(ours: nn.Module, theirs: nn.Module, ids: Tensor, tolerance: float) -> float:
    cfg = ours.cfg
    dialect, prefix = ("hf", "text_model.") if cfg.projection_dim else ("hf-bare", "")
    pairs = paired(clip.text_rows(cfg, dialect), [], HF)
    pairs |= {f"layers.{n}": f"{prefix}encoder.layers.{n}" for n in range(cfg.depth)}
    del pairs["position"]  # ours adds the table's rows, without a lookup
    with recorded(ours, pairs) as ran, recorded(theirs, pairs.values()) as reference:
        found, expected = ours(ids), theirs(ids, output_hidden_states=True)
    assert ran.keys() == pairs.keys()
    hidden = expected.hidden_states[cfg.depth - cfg.skipped_layers]  # [n] is the state after n layers
    norm = theirs.get_submodule(f"{prefix}final_layer_norm")
    pooled = expected.text_embeds if cfg.projection_dim else expected.pooler_output
    return max(assert_same_layers(ran, reference, pairs, tolerance),
               assert_close("hidden", found.hidden, norm(hidden) if cfg.final_norm else hidden, tolerance),
               assert_close("pooled", found.pooled, pooled, tolerance))


def compare_visions(ours: nn.Module, theirs: nn.Module, pixels: Tensor, tolerance: float) -> float:
    pairs = paired(clip.vision_rows(ours.cfg, "hf"), [], HF)
    pairs |= {f"layers.{n}": f"vision_model.encoder.layers.{n}" for n in range(ours.cfg.depth)}
    del pairs["position"], pairs[""]  # parameters that are added, not modules that run
    with recorded(ours, pairs) as ran, recorded(theirs, pairs.values()) as reference:
        found, expected = ours(pixels), theirs(pixels).image_embeds
    assert ran.keys() == pairs.keys()
    return max(assert_same_layers(ran, reference, pairs, tolerance),
               assert_close("embedding", found, expected, tolerance))
