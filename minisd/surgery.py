"""Surgery: which UNets can be cut out of another one, and their first weights, taken from it block by block.

A cut is a word, and stages are counted from the outermost, 0:
    mid       the mid block
    block.i   one residual block of stage i with its transformer, on the way down and its partner on the way up
    attn.i    all transformers of stage i, down and up
    stage.i   stage i, down and up, with the mid block under it; only the innermost can go
The students of BK-SDM (Kim et al., arXiv 2305.15798, section 3.1) are short words for several cuts.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minisd.config import UNetConfig
from minisd.errors import USAGE, MinisdError
from minisd.unet import UNet

KINDS = ("block", "attn", "stage")
BK = ("bk-base", "bk-small", "bk-tiny")
NAMES = ("midless", *BK)


def student(teacher: UNetConfig, removed: Sequence[str]) -> UNetConfig:
    """The config that is left of a teacher when all these cuts, or short words for several, are made in their order."""
    cfg = teacher
    for word in removed:
        for cut in cuts_of(word, teacher):
            try:
                cfg = without(cfg, cut)
            except ValueError as fault:
                raise MinisdError(f"{cut!r} cannot be removed", f"remove = {list(removed)}", str(fault),
                                  f"give some of {', '.join((*NAMES, *cuts(teacher)))}", USAGE) from fault
    return cfg


def cuts_of(word: str, teacher: UNetConfig) -> tuple[str, ...]:
    """What a short word stands for; a cut stands for itself."""
    blocks = tuple(f"block.{i}" for i in range(len(teacher.widths)))
    whole = {"midless": ("mid",), "bk-base": blocks, "bk-small": (*blocks, "mid"),
             "bk-tiny": (*blocks, f"stage.{len(teacher.widths) - 1}")}
    return whole.get(word, (word,))


def cuts(cfg: UNetConfig) -> list[str]:
    """Every cut that can be made first."""
    last = len(cfg.widths) - 1
    possible = ["mid"] if cfg.mid_depth is not None else []
    possible += [f"block.{i}" for i in range(last + 1) if cfg.layers_at(i) > 1]
    possible += [f"attn.{i}" for i in range(last + 1) if cfg.depths[i]]
    return possible + ([f"stage.{last}"] if last else [])


def without(cfg: UNetConfig, cut: str) -> UNetConfig:
    """The config after one cut; ValueError says why it cannot be made."""
    if cut == "mid":
        if cfg.mid_depth is None:
            raise ValueError("there is no mid block")
        return replace(cfg, mid_depth=None)
    kind, _, number = cut.partition(".")
    if kind not in KINDS or not number.isdecimal():
        raise ValueError("this is no cut")
    i, stages, layers = int(number), len(cfg.widths), layers_of(cfg)
    if i >= stages:
        raise ValueError(f"there are {stages} stages, from 0 on")
    if kind == "block":
        if layers[i] == 1:
            raise ValueError(f"stage {i} has one residual block, which must stay")
        return replace(cfg, layers=even((*layers[:i], layers[i] - 1, *layers[i + 1:])))
    if kind == "attn":
        if not cfg.depths[i]:
            raise ValueError(f"stage {i} has no transformers")
        return replace(cfg, depths=(*cfg.depths[:i], 0, *cfg.depths[i + 1:]))
    if i < stages - 1 or stages == 1:
        raise ValueError("only the innermost of several stages can go")
    return replace(cfg, widths=cfg.widths[:-1], depths=cfg.depths[:-1], layers=even(layers[:-1]),
                   mid_depth=None)


def layers_of(cfg: UNetConfig) -> tuple[int, ...]:
    """Residual blocks of each down stage."""
    return tuple(cfg.layers_at(i) for i in range(len(cfg.widths)))


def even(layers: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number where all are equal, as a config wants it."""
    return layers[0] if len(set(layers)) == 1 else layers


def pairs(teacher: UNetConfig, cfg: UNetConfig) -> dict[str, str]:
    """The student's sites whose features are compared, and the teacher's beside them: the last output of every down
    and up stage, resized where the stage does so, as in BK-SDM; and the mid block's where both have one."""
    stages, gone = len(cfg.widths), len(teacher.widths) - len(cfg.widths)
    both_mid = teacher.mid_depth is not None and cfg.mid_depth is not None
    down = [*(f"down.{i}.downsample" for i in range(stages - 1)), f"down.{stages - 1}"]
    return ({site: site for site in down} | ({"mid": "mid"} if both_mid else {})
            | {f"up.{k}": f"up.{k + gone}" for k in range(stages)})


def origins(teacher: UNetConfig, cfg: UNetConfig) -> dict[str, str]:
    """Each block of the student, by module path, and the teacher's block that it takes its weights from.

    Of a stage's blocks the first stay; on the way up, where the last one is wired to another skip, the first and the
    last: 0 and 2 of three.
    """
    found: dict[str, str] = {}
    gone = len(teacher.widths) - len(cfg.widths)
    for i in range(len(cfg.widths)):
        up, kept, there = len(cfg.widths) - 1 - i, cfg.layers_at(i), teacher.layers_at(i)
        down_blocks = [(f"down.{i}", j, f"down.{i}", j) for j in range(kept)]
        up_blocks = [(f"up.{up}", j, f"up.{up + gone}", there if j == kept else j) for j in range(kept + 1)]
        for mine, j, theirs, k in (*down_blocks, *up_blocks):
            found |= {f"{mine}.{part}.{j}": f"{theirs}.{part}.{k}" for part in ("res", "attn")}
        found[f"up.{up}.upsample"] = f"up.{up + gone}.upsample"
    return found


def block_of(path: str) -> str:
    """The block that a module or weight lies in, as `origins` names it; of what lies in none, the beginning."""
    return ".".join(path.split(".")[:4 if ".res." in path or ".attn." in path else 3])


def transplant(teacher: UNet, cfg: UNetConfig) -> UNet:
    """A student of this config with its first weights, copies of the teacher's by block identity, in its dtype."""
    must_descend(teacher.cfg, cfg)
    blocks, theirs = origins(teacher.cfg, cfg), teacher.state_dict()
    with torch.device("meta"):
        made = UNet(cfg)
    tensors = {}
    for key, wanted in made.state_dict().items():
        block = block_of(key)
        there = theirs[blocks.get(block, block) + key.removeprefix(block)]
        fresh = 1.0 if key.endswith("norm1.weight") else 0.0
        tensors[key] = fitted(there.detach(), wanted.shape, cfg.widths[-1], fresh)
    made.load_state_dict(tensors, assign=True)
    return made.requires_grad_(True)


def fitted(tensor: Tensor, shape: torch.Size, skip: int, fresh: float) -> Tensor:
    """A copy of a teacher's tensor, or one for other inputs: where the stage below is gone, a block reads [below, skip]
    with another number of channels below. Those of the skip keep their weights, the others begin as `fresh`."""
    if tensor.shape == shape:
        return tensor.clone(memory_format=torch.contiguous_format)
    made, inputs = tensor.new_full(shape, fresh), min(1, tensor.ndim - 1)
    made.narrow(inputs, shape[inputs] - skip, skip).copy_(tensor.narrow(inputs, tensor.shape[inputs] - skip, skip))
    return made


def must_descend(teacher: UNetConfig, cfg: UNetConfig) -> None:
    """Refuses what no cuts of the teacher can lead to."""
    stages = len(cfg.widths)
    same = replace(teacher, widths=cfg.widths, depths=cfg.depths, layers=cfg.layers, mid_depth=cfg.mid_depth)
    mids = (None, teacher.mid_depth) if stages == len(teacher.widths) else (None,)
    parts = cfg.widths == teacher.widths[:stages] and cfg.mid_depth in mids
    fewer = all(depth in (0, full) for depth, full in zip(cfg.depths, teacher.depths, strict=False))
    fewer = fewer and all(a <= b for a, b in zip(layers_of(cfg), layers_of(teacher), strict=False))
    if same != cfg or not parts or not fewer:
        raise MinisdError("the student is not a part of the teacher", why=f"{cfg} of {teacher}",
                          remedy="give a config that is made by cuts", code=USAGE)
