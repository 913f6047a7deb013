"""Named points of a network where a tensor can be added or kept: one mechanism for ControlNet, T2I-Adapter and taps.

Names are module paths: `conv_in`, `down.i` (a stage's last block), `down.i.downsample`, `mid`, `up.i`; and `skip.n` for
the n-th skip connection as the up path receives it, `deep.n` for what meets it there, coming from below.
"""

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from minisd.config import UNetConfig

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Sites:
    """What to add and what to keep during one forward pass; `kept` fills as the pass goes. Make a new one per call.

    ControlNet adds at `skip.*` and `mid`, T2I-Adapter at `down.*`; distillation keeps the sites it compares.
    """

    def __init__(self, add: Mapping[str, Tensor] = NOTHING, keep: tuple[str, ...] = ()):
        self.add, self.keep = add, keep
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if name in self.add:
            x = x + self.add[name]
        if name in self.keep:
            self.kept[name] = x
        return x


NO_SITES = Sites()                                # neither adds nor keeps, so one constant serves every call


def unet_sites(cfg: UNetConfig, height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """Shape (channels, height, width) at every site of a UNet for latents of this size, from the config alone."""
    sizes = [(height, width)]
    for _ in cfg.widths[1:]:
        height, width = -(-height // 2), -(-width // 2)      # a stride of 2 rounds up
        sizes.append((height, width))
    last = len(cfg.widths) - 1
    shapes = {"conv_in": (cfg.widths[0], *sizes[0])}
    skips = [shapes["conv_in"]]
    for i, channels in enumerate(cfg.widths):
        shapes[f"down.{i}"] = (channels, *sizes[i])
        skips += [shapes[f"down.{i}"]] * cfg.layers_at(i)
        if i < last:
            shapes[f"down.{i}.downsample"] = (channels, *sizes[i + 1])
            skips.append(shapes[f"down.{i}.downsample"])
    shapes["mid"] = (cfg.widths[-1], *sizes[-1])
    shapes |= {f"skip.{n}": shape for n, shape in enumerate(skips)}
    below = cfg.widths[-1]
    for i in reversed(range(len(cfg.widths))):
        for _ in range(cfg.layers_at(i) + 1):
            skips.pop()
            shapes[f"deep.{len(skips)}"] = (below, *sizes[i])
            below = cfg.widths[i]
        shapes[f"up.{last - i}"] = (below, *sizes[max(i - 1, 0)])
    return shapes
