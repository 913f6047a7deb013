"""Names of the autoencoder's tensors: ours, LDM's, diffusers', and those diffusers gave its attention until 2023."""

from collections.abc import Iterator

from minisd.config import VAEConfig
from weights_convert.tables import HF, ORIGINAL, OURS, SQUEEZED, Block, Leaves, Names, Row, alike, both, product

DIALECTS = {"ours": OURS, "ldm": ORIGINAL, "diffusers": HF, "diffusers-2022": HF}
NAMES_OF_2022 = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # most VAEs still have them

LEAVES: Leaves = {
    "outer": [
        *alike("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"),
        *both("encoder.norm_out", "encoder.norm_out", "encoder.conv_norm_out"),
        *both("encoder.moments", "quant_conv", "quant_conv"),
        *both("decoder.latents", "post_quant_conv", "post_quant_conv"),
        *both("decoder.norm_out", "decoder.norm_out", "decoder.conv_norm_out"),
    ],
    "res": alike("norm1", "conv1", "norm2", "conv2"),
    "widen": both("skip", "nin_shortcut", "conv_shortcut"),
    "attn": [
        *both("norm", "norm", "group_norm"),
        *both("attn.q", "q", "to_q", SQUEEZED),
        *both("attn.k", "k", "to_k", SQUEEZED),
        *both("attn.v", "v", "to_v", SQUEEZED),
        *both("attn.out", "proj_out", "to_out.0", SQUEEZED),
    ],
    "resize": alike(""),
}


def rows(cfg: VAEConfig, dialect: str) -> list[Row]:
    """Rows from our names to `ldm`, `diffusers`, `diffusers-2022` or `ours`."""
    table = product(blocks(cfg), LEAVES, DIALECTS[dialect])
    if dialect == "diffusers-2022":
        return [row._replace(theirs=tuple(map(as_of_2022, row.theirs))) for row in table]
    return list(table)


def as_of_2022(name: str) -> str:
    for new, old in NAMES_OF_2022.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def blocks(cfg: VAEConfig) -> Iterator[Block]:
    """Where every block lives. LDM numbers the decoder's stages from the picture, diffusers and we from the latents."""
    yield Block("outer", ("", "", ""))
    last = len(cfg.widths) - 1
    yield from half("encoder", "down", cfg.layers, cfg.widths, list(range(last + 1)))
    yield from half("decoder", "up", cfg.layers + 1, cfg.widths[::-1], list(range(last, -1, -1)))


def half(name: str, way: str, layers: int, widths: tuple[int, ...], ldm: list[int]) -> Iterator[Block]:
    """The blocks of the encoder or the decoder; `ldm` are LDM's numbers of its stages."""
    for i, width in enumerate(widths):
        stage: Names = (f"{name}.{way}.{i}", f"{name}.{way}.{ldm[i]}", f"{name}.{way}_blocks.{i}")
        for j in range(layers):
            paths: Names = (f"{stage[0]}.res.{j}", f"{stage[1]}.block.{j}", f"{stage[2]}.resnets.{j}")
            yield Block("res", paths)
            if j == 0 and widths[max(i - 1, 0)] != width:
                yield Block("widen", paths)
        if i < len(widths) - 1:
            size = f"{way}sample"
            yield Block("resize", (f"{stage[0]}.{size}", f"{stage[1]}.{size}.conv", f"{stage[2]}.{size}rs.0.conv"))
    for j in (0, 1):
        yield Block("res", (f"{name}.mid.res.{j}", f"{name}.mid.block_{j + 1}", f"{name}.mid_block.resnets.{j}"))
    yield Block("attn", (f"{name}.mid.attn", f"{name}.mid.attn_1", f"{name}.mid_block.attentions.0"))
