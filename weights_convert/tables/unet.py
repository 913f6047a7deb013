"""Names of the UNet's tensors: ours, LDM's (CompVis, Stability), and diffusers'."""

from collections.abc import Iterator

from minisd.config import UNetConfig
from weights_convert.tables import HF, ORIGINAL, OURS, Block, Leaf, Leaves, Names, Row, alike, both, product

LABELLED = "diffusers-class"                      # a label that is the pooled text alone is a class to diffusers
DIALECTS = {"ours": OURS, "ldm": ORIGINAL, "diffusers": HF, LABELLED: HF}
ADDED, CLASS = "add_embedding.", "class_embedding."  # SDXL's label, which is joined of several things; that class


def attention(ours: str, theirs: str) -> list[Leaf]:
    """The projections of one attention; LDM and diffusers agree about them."""
    inputs = [Leaf((f"{ours}.{x}.weight", f"{theirs}.to_{x}.weight", f"{theirs}.to_{x}.weight")) for x in "qkv"]
    return [*inputs, *both(f"{ours}.out", f"{theirs}.to_out.0", f"{theirs}.to_out.0")]


LEAVES: Leaves = {
    "outer": [
        *both("conv_in", "input_blocks.0.0", "conv_in"),
        *both("time.in_proj", "time_embed.0", "time_embedding.linear_1"),
        *both("time.out_proj", "time_embed.2", "time_embedding.linear_2"),
    ],
    "exit": [*both("norm_out", "out.0", "conv_norm_out"), *both("conv_out", "out.2", "conv_out")],
    "label": [*both("in_proj", "0.0", "linear_1"), *both("out_proj", "0.2", "linear_2")],
    "res": [
        *both("norm1", "in_layers.0", "norm1"),
        *both("conv1", "in_layers.2", "conv1"),
        *both("time", "emb_layers.1", "time_emb_proj"),
        *both("norm2", "out_layers.0", "norm2"),
        *both("conv2", "out_layers.3", "conv2"),
    ],
    "widen": both("skip", "skip_connection", "conv_shortcut"),
    "attn": alike("norm", "proj_in", "proj_out"),
    "layer": [
        *alike("norm1", "norm2", "norm3"),
        *attention("self_attn", "attn1"),
        *attention("cross_attn", "attn2"),
        *both("ff.in_proj", "ff.net.0.proj", "ff.net.0.proj"),
        *both("ff.out_proj", "ff.net.2", "ff.net.2"),
    ],
    "resize": alike(""),
}


def rows(cfg: UNetConfig, dialect: str) -> list[Row]:
    """Rows from our names to `ldm`, `diffusers`, `diffusers-class` or `ours`."""
    table = product(blocks(cfg), LEAVES, DIALECTS[dialect])
    if dialect == LABELLED:
        return [row._replace(theirs=tuple(name.replace(ADDED, CLASS) for name in row.theirs)) for row in table]
    return list(table)


def blocks(cfg: UNetConfig) -> Iterator[Block]:
    """Where every block lives. LDM counts the blocks and resizes of a half in one list, diffusers and we by stage."""
    yield Block("outer", ("", "", ""))
    if cfg.label_dim is not None:
        yield Block("label", ("label", "label_emb", "add_embedding"))
    last, count = len(cfg.widths) - 1, 0  # in LDM's list, whose first is conv_in
    for i, depth in enumerate(cfg.depths):
        for j in range(cfg.layers_at(i)):
            count += 1
            here = f"input_blocks.{count}"
            widens = j == 0 and cfg.widths[max(i - 1, 0)] != cfg.widths[i]
            yield from residual(widens, (f"down.{i}.res.{j}", f"{here}.0", f"down_blocks.{i}.resnets.{j}"))
            yield from transformer(depth, (f"down.{i}.attn.{j}", f"{here}.1", f"down_blocks.{i}.attentions.{j}"))
        if i < last:
            count += 1
            here = f"input_blocks.{count}"
            yield Block("resize", (f"down.{i}.downsample", f"{here}.0.op", f"down_blocks.{i}.downsamplers.0.conv"))
    if cfg.mid_depth is not None:
        yield Block("res", ("mid.res.0", "middle_block.0", "mid_block.resnets.0"))
        yield from transformer(cfg.mid_depth, ("mid.attn.0", "middle_block.1", "mid_block.attentions.0"))
        yield Block("res", ("mid.res.1", "middle_block.2", "mid_block.resnets.1"))
    count = -1
    for i, depth in enumerate(reversed(cfg.depths)):
        for j in range(cfg.layers_at(last - i) + 1):
            count += 1
            here = f"output_blocks.{count}"
            yield from residual(True, (f"up.{i}.res.{j}", f"{here}.0", f"up_blocks.{i}.resnets.{j}"))
            yield from transformer(depth, (f"up.{i}.attn.{j}", f"{here}.1", f"up_blocks.{i}.attentions.{j}"))
        if i < last:  # in LDM the last module of the stage's last block, after the transformer if there is one
            here += ".2.conv" if depth else ".1.conv"
            yield Block("resize", (f"up.{i}.upsample", here, f"up_blocks.{i}.upsamplers.0.conv"))
    yield Block("exit", ("", "", ""))


def residual(widens: bool, paths: Names) -> Iterator[Block]:
    yield Block("res", paths)
    if widens:
        yield Block("widen", paths)


def transformer(depth: int, paths: Names) -> Iterator[Block]:
    if depth:
        yield Block("attn", paths)
    ours, ldm, hf = paths
    for n in range(depth):
        yield Block("layer", (f"{ours}.layers.{n}", f"{ldm}.transformer_blocks.{n}", f"{hf}.transformer_blocks.{n}"))
