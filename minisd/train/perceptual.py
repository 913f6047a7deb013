"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): how different two pictures look, by the features of VGG16.

No weights are shipped. A safetensors file must hold VGG16's convolutions by torchvision's names ("features.0.weight")
or the lpips package's ("net.slice1.0.weight"), and the package's weights of the five layers ("lin0.model.1.weight").
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from minisd.errors import MinisdError

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # table 1, D of arXiv 1409.1556
NAME = re.compile(r"(?:features|net\.slice\d)\.(?P<place>\d+)\.(?P<kind>weight|bias)|lin(?P<lin>\d)\.model\.1\.weight")
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for pictures in [-1, 1]


class LPIPS(nn.Module):
    """Two pictures [b, 3, h, w] in [-1, 1], of at least 16 pixels a side -> their distance [b]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convs, self.lins = nn.ModuleDict(), nn.ModuleList()
        place, c_in = 0, 3                        # torchvision counts convolutions, ReLUs and poolings in one row
        for stage in WIDTHS:
            for width in stage:
                self.convs[str(place)] = nn.Conv2d(c_in, width, 3, padding=1)
                place, c_in = place + 2, width
            place += 1
            self.lins.append(nn.Conv2d(c_in, 1, 1, bias=False))
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        distance = x.new_zeros(len(x))
        for lin, a, b in zip(self.lins, self.features(x), self.features(y), strict=True):
            distance = distance + lin((unit(a) - unit(b)).square()).float().mean(dim=(1, 2, 3))
        return distance

    def features(self, x: Tensor) -> list[Tensor]:
        """The last features of each stage, [b, width, h / 2^stage, w / 2^stage]."""
        h, found, convs = (x - self.shift) / self.scale, [], iter(self.convs.values())
        for n, stage in enumerate(WIDTHS):
            h = F.max_pool2d(h, 2) if n else h
            for _ in stage:
                h = F.relu(next(convs)(h))
            found.append(h)
        return found


def unit(features: Tensor) -> Tensor:
    """Every pixel's features at length 1; in float32."""
    features = features.float()
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def load_lpips(path: Path) -> LPIPS:
    """LPIPS with the weights of a file, frozen."""
    try:
        matches = [(NAME.fullmatch(name), tensor) for name, tensor in load_file(path).items()]
    except (OSError, SafetensorError) as fault:
        raise MinisdError("the weights of LPIPS cannot be read", str(path), str(fault),
                          "give a safetensors file, or leave `perceptual` out") from fault
    found = {f"lins.{m['lin']}.weight" if m["lin"] else f"convs.{m['place']}.{m['kind']}": t for m, t in matches if m}
    lpips = LPIPS()
    wanted = lpips.state_dict()
    faults = [name for name, t in wanted.items() if name not in found or found[name].shape != t.shape]
    if faults:
        raise MinisdError("the file does not hold the weights of LPIPS", str(path),
                          f"{len(faults)} are missing or of another shape, the first {faults[0]}",
                          "join VGG16's and the five lin layers' weights in one file")
    lpips.load_state_dict({name: found[name] for name in wanted})
    return lpips.requires_grad_(False).eval()
