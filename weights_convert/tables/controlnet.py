"""Names of a ControlNet's tensors (arXiv 2302.05543): the UNet down to its middle, and what is added to it."""

from collections.abc import Iterator

from minisd.config import UNetConfig
from weights_convert.tables import Block, Leaves, Row, alike, both, product, unet

HINTS = 8  # convolutions that bring the hint to the size of the latents
DIFFUSERS_HINTS = ("conv_in", *(f"blocks.{n}" for n in range(HINTS - 2)), "conv_out")

LEAVES: Leaves = {
    **unet.LEAVES,
    "hint": [leaf for n, name in enumerate(DIFFUSERS_HINTS) for leaf in both(str(n), str(2 * n), name)],
    "zero": alike(""),
}


def rows(cfg: UNetConfig, dialect: str) -> list[Row]:
    """Rows from our names to `ldm`, `diffusers` or `ours`; `cfg` is that of the UNet that it steers."""
    return list(product(blocks(cfg), LEAVES, unet.DIALECTS[dialect]))


def blocks(cfg: UNetConfig) -> Iterator[Block]:
    """Where every block lives: what the UNet has before its way up, and a zero convolution for every skip."""
    for block in unet.blocks(cfg):
        if block.kind != "exit" and not block.paths[0].startswith("up."):
            yield block
    yield Block("hint", ("hint", "input_hint_block", "controlnet_cond_embedding"))
    for n in range(cfg.skips):  # conv_in, the residual blocks, the resizes
        yield Block("zero", (f"zero.{n}", f"zero_convs.{n}.0", f"controlnet_down_blocks.{n}"))
    if cfg.mid_depth is not None:
        yield Block("zero", ("zero_mid", "middle_block_out.0", "controlnet_mid_block"))
