"""Names of the tensors of CLIP's towers: ours, those of OpenAI's and OpenCLIP's code, and transformers'.

LDM's files hold the text tower of SD1 as transformers had it (`hf`), those of SD2 and SDXL as OpenCLIP has it.
"""

from minisd.config import CLIPTextConfig, CLIPVisionConfig
from weights_convert.tables import HF, ORIGINAL, OURS, SPLIT, TRANSPOSED, Block, Leaf, Leaves, Row, both, product

DIALECTS = {"ours": OURS, "openclip": ORIGINAL, "hf": HF, "hf-bare": HF}

LEAVES: Leaves = {
    "text": [
        Leaf(("token.weight", "token_embedding.weight", "text_model.embeddings.token_embedding.weight")),
        Leaf(("position.weight", "positional_embedding", "text_model.embeddings.position_embedding.weight")),
        *both("norm_out", "ln_final", "text_model.final_layer_norm"),
        Leaf(("", "logit_scale", "text_model.embeddings.position_ids")),
    ],
    "projected": [Leaf(("projection.weight", "text_projection", "text_projection.weight"), TRANSPOSED)],
    "learnt": [Leaf(("token.extra", "", ""))],
    "unprojected": [Leaf(("", "text_projection", ""))],
    "vision": [
        Leaf(("patch.weight", "visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight")),
        Leaf(("cls", "visual.class_embedding", "vision_model.embeddings.class_embedding")),
        Leaf(("position.weight", "visual.positional_embedding", "vision_model.embeddings.position_embedding.weight")),
        *both("norm_in", "visual.ln_pre", "vision_model.pre_layrnorm"),  # so spelt there
        *both("norm_out", "visual.ln_post", "vision_model.post_layernorm"),
        Leaf(("projection.weight", "visual.proj", "visual_projection.weight"), TRANSPOSED),
        Leaf(("", "", "vision_model.embeddings.position_ids")),
    ],
    "layer": [
        *both("norm1", "ln_1", "layer_norm1"),
        Leaf(("attn.q.weight attn.k.weight attn.v.weight", "attn.in_proj_weight",
              "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight"), SPLIT),
        Leaf(("attn.q.bias attn.k.bias attn.v.bias", "attn.in_proj_bias",
              "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias"), SPLIT),
        *both("attn.out", "attn.out_proj", "self_attn.out_proj"),
        *both("norm2", "ln_2", "layer_norm2"),
        *both("in_proj", "mlp.c_fc", "mlp.fc1"),
        *both("out_proj", "mlp.c_proj", "mlp.fc2"),
    ],
}


def text_rows(cfg: CLIPTextConfig, dialect: str) -> list[Row]:
    """Rows from our names to `openclip`, `hf`, `hf-bare` (as transformers 5 saves a lone tower) or `ours`."""
    kinds = ["text", "projected" if cfg.projection_dim else "unprojected"]
    if cfg.words and dialect == "ours":           # no other dialect has words learnt later in its checkpoints
        kinds.append("learnt")
    top = [Block(kind, ("", "", "")) for kind in kinds]
    layers = blocks(cfg.depth, "transformer.resblocks", "text_model.encoder.layers")
    return named([*top, *layers], dialect)


def vision_rows(cfg: CLIPVisionConfig, dialect: str) -> list[Row]:
    """The same for the vision tower."""
    layers = blocks(cfg.depth, "visual.transformer.resblocks", "vision_model.encoder.layers")
    return named([Block("vision", ("", "", "")), *layers], dialect)


def blocks(depth: int, openclip: str, hf: str) -> list[Block]:
    """Where every layer lives."""
    return [Block("layer", (f"layers.{n}", f"{openclip}.{n}", f"{hf}.{n}")) for n in range(depth)]


def named(places: list[Block], dialect: str) -> list[Row]:
    table = list(product(places, LEAVES, DIALECTS[dialect]))
    if dialect == "hf-bare":
        return [row._replace(theirs=tuple(map(bare, row.theirs))) for row in table]
    return table


def bare(name: str) -> str:
    return name.removeprefix("text_model.").removeprefix("vision_model.")
