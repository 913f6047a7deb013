"""LoRA (Hu et al., arXiv 2106.09685): low-rank side paths learn beside weights that stay, in the UNet and, slower, in
the text encoder."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from minisd import attach
from minisd.adapters import taken
from minisd.attach import LoRASpec
from minisd.pipeline import StableDiffusion
from minisd.train.tasks.tuned import Learnt, parts
from minisd.train.tuning import LoRATask
from weights_convert.lora.adapter import Adapter
from weights_convert.lora.write import write_adapter

# What targets are called in recipes, as patterns of module paths.
TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "unet": {"attention": ("*_attn.*",), "cross-attention": ("*.cross_attn.*",),
             "feed-forward": ("*.ff.*", "*.proj_in", "*.proj_out"),
             "conv": ("*.res.*.conv?", "*.res.*.skip", "*.downsample", "*.upsample")},
    "text": {"attention": ("*.attn.*",), "feed-forward": ("*.in_proj", "*.out_proj")},
}


def learnt(sd: StableDiffusion, options: LoRATask, name: str, seed: int, metadata: Mapping[str, str]) -> Learnt:
    """New side paths, which add nothing yet, taken home as one file `name.safetensors` in kohya's names."""
    generator = torch.Generator().manual_seed(seed)
    side = name.replace(".", "_")
    wanted = {"unet": (options.targets, 1.0), "text": (options.text_targets, options.text_rate)}
    rates: dict[str, float] = {}
    for part, network in parts(sd).items():
        targets, rate = wanted[part]
        if rate and targets:
            spec = LoRASpec(side, options.rank, options.alpha, patterns(part, targets))
            attach.attach(network, spec, generator)
            rates |= {f"{part}.{path}": rate for path, _ in network.named_parameters() if f".lora.{side}." in path}
    file = f"{name}.safetensors"
    return Learnt(rates, partial(export, sd, side, file, metadata), file, "--lora")


def patterns(part: str, targets: Sequence[str]) -> tuple[str, ...]:
    """Words of recipes as patterns; what is none is a pattern already."""
    return tuple(pattern for target in targets for pattern in TARGETS[part].get(target, (target,)))


def export(sd: StableDiffusion, side: str, file: str, metadata: Mapping[str, str], folder: Path) -> None:
    """The adapter as a file; one that a killed export has left is the same."""
    adapter, target = taken(sd, side), folder / file
    target.unlink(missing_ok=True)
    write_adapter(Adapter(adapter.entries, adapter.cfg, metadata), target)
