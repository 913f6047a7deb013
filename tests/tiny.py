"""The presets in miniature: every family's shape, small enough to run in a test."""

from dataclasses import replace

from minisd.config import PRESETS, TINY, UNetConfig


def tiny(cfg: UNetConfig) -> UNetConfig:
    """A twentieth of the width, at most 3 transformer layers in a row, and all that tells the families apart."""
    return replace(
        cfg, widths=tuple(width // 20 for width in cfg.widths), context_dim=cfg.context_dim // 16, groups=4,
        depths=tuple(min(depth, 3) for depth in cfg.depths), mid_depth=cfg.mid_depth and min(cfg.mid_depth, 3),
        head_dim=4 if cfg.head_dim else None, label_dim=64 if cfg.label_dim else None)


TINY_UNETS = {name: cfg if cfg is TINY else tiny(cfg) for name, cfg in PRESETS.items()}
TINY_UNETS["uneven"] = replace(TINY_UNETS["sd15"], layers=(1, 2, 3, 1))
