"""Side paths beside Linears and convolutions: LoRA (Hu et al., arXiv 2106.09685), LoCon, LoHa and LoKr.

A module with side paths holds the very parameters of the plain one that it stands for; see `attach` for the swapping.
"""

from copy import copy
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Side(nn.Module):
    """What an adapter adds to one module.

    `strength` and `scale` are tensors: another strength, or another adapter of the same shapes and name whatever its
    alpha, neither rebuilds nor recompiles.
    """

    strength: Tensor
    scale: Tensor                                 # of its product of matrices, alpha / rank

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("strength", torch.ones(()), persistent=False)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def delta(self) -> Tensor:
        """What it adds to the module's weight at strength 1, in the weight's shape."""
        raise NotImplementedError

    def matrices(self) -> tuple[Tensor, Tensor] | None:
        """[out, rank], strength included, and [rank, in]: their product is what it adds to a matrix. Else None."""
        return None

    def add_linear(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., out], which is the host's to write over, and the side path's answer to x [..., in]."""
        return y + self.strength.to(y.dtype) * F.linear(x, self.delta())

    def add_conv(self, y: Tensor, x: Tensor, host: nn.Conv2d) -> Tensor:
        """y [b, out, h, w] and the side path's answer to x [b, in, ...], with the host's stride and padding."""
        return y + self.strength.to(y.dtype) * convolved(x, self.delta(), host)


class LowRank(Side):
    """LoRA (Hu et al., arXiv 2106.09685, section 4.1): delta W = alpha / rank * up @ down.

    Of a convolution, `down` has the kernel and `up` is 1x1; where there is a `mid`, it has the kernel.
    """

    def __init__(self, down: Tensor, up: Tensor, alpha: float, mid: Tensor | None = None):
        super().__init__(alpha / down.shape[0])
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)  # [rank, in, ...], [out, rank, ...]
        self.mid = nn.Parameter(mid) if mid is not None else None  # [rank, rank, k, k]
        self.alpha = alpha

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self) -> Tensor:
        up = self.up.flatten(1)                   # [out, rank]
        if self.mid is not None:                  # [out, rank] x [rank, rank, k, k] x [rank, in]
            return self.scale * torch.einsum("or,rskl,si->oikl", up, self.mid, self.down.flatten(1))
        return self.scale * (up @ self.down.flatten(1)).unflatten(1, self.down.shape[1:])

    def matrices(self) -> tuple[Tensor, Tensor] | None:
        if self.mid is not None:
            return None
        return self.up.flatten(1) * (self.strength * self.scale), self.down.flatten(1)

    def add_linear(self, y: Tensor, x: Tensor) -> Tensor:
        h = F.linear(x, self.down) * (self.strength * self.scale).to(x.dtype)      # the small tensor bears the scale
        y.view(-1, y.shape[-1]).addmm_(h.view(-1, self.rank), self.up.T.to(h.dtype))
        return y

    def add_conv(self, y: Tensor, x: Tensor, host: nn.Conv2d) -> Tensor:
        scale = (self.strength * self.scale).to(x.dtype)
        if self.mid is None:
            return y + F.conv2d(convolved(x, self.down, host) * scale, self.up)
        return y + F.conv2d(convolved(F.conv2d(x, self.down), self.mid, host) * scale, self.up)


class Hadamard(Side):
    """LoHa (Hyeon-Woo et al., arXiv 2108.06098, eq. 2): the product, number by number, of two low-rank matrices."""

    def __init__(self, w1: tuple[Tensor, Tensor], w2: tuple[Tensor, Tensor], alpha: float, shape: tuple[int, ...]):
        super().__init__(alpha / w1[1].shape[0])
        self.w1_a, self.w1_b = map(nn.Parameter, w1)  # [out, rank], [rank, in * k * k]
        self.w2_a, self.w2_b = map(nn.Parameter, w2)
        self.alpha, self.shape = alpha, shape     # shape: of the module's weight

    def delta(self) -> Tensor:
        return (self.scale * (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)).view(self.shape)


class Kronecker(Side):
    """LoKr (Yeh et al., arXiv 2309.14859, section 3): a Kronecker product of a small matrix and a larger one.

    Each factor is one tensor, or two whose product it is. alpha counts only where a factor is low-rank.
    """

    def __init__(self, w1: tuple[Tensor, ...], w2: tuple[Tensor, ...], alpha: float, shape: tuple[int, ...]):
        ranks = [factor[1].shape[0] for factor in (w1, w2) if len(factor) > 1]
        super().__init__(alpha / ranks[0] if ranks else 1.0)
        self.w1, self.w2 = nn.ParameterList(w1), nn.ParameterList(w2)
        self.alpha, self.shape = alpha, shape

    def delta(self) -> Tensor:
        w1, w2 = self.factor(self.w1), self.factor(self.w2)
        if w2.dim() == 4:                         # of a convolution the second factor has the kernel
            w1 = w1[:, :, None, None]
        return (self.scale * torch.kron(w1, w2)).reshape(self.shape)

    @staticmethod
    def factor(parts: nn.ParameterList) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        return (parts[0] @ parts[1].flatten(1)).unflatten(1, parts[1].shape[1:])


class LoRALinear(nn.Linear):
    """A Linear with side paths."""

    lora: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:       # [..., in] -> [..., out]
        y = super().forward(x)
        for side in self.lora.values():
            y = cast(Side, side).add_linear(y, x)
        return y


class LoRAConv2d(nn.Conv2d):
    """A convolution with side paths."""

    lora: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:       # [b, in, h, w] -> [b, out, h', w']
        y = super().forward(x)
        for side in self.lora.values():
            y = cast(Side, side).add_conv(y, x, self)
        return y


Host = LoRALinear | LoRAConv2d
HOSTS: dict[type[nn.Module], type[Host]] = {nn.Linear: LoRALinear, nn.Conv2d: LoRAConv2d}
PLAIN = {host: module for module, host in HOSTS.items()}


def hosted(module: nn.Module) -> Host:
    """The module with room for side paths, holding the same parameters; as it is, if it has that room."""
    if type(module) in PLAIN:
        return cast(Host, module)
    host = alike(HOSTS[type(module)], module)
    host.lora = nn.ModuleDict()
    return host


def plain(host: Host) -> nn.Linear | nn.Conv2d:
    """The module without its side paths, holding the same parameters."""
    module = cast(nn.Linear | nn.Conv2d, alike(PLAIN[type(host)], host))
    del module._modules["lora"]
    return module


def alike(kind: type[M], module: nn.Module) -> M:
    """A module of another class with all that this one has: parameters are shared, the lists of them are not."""
    other = kind.__new__(kind)
    vars(other).update({name: copy(value) if isinstance(value, dict) else value
                        for name, value in vars(module).items()})
    return other


def convolved(x: Tensor, kernel: Tensor, host: nn.Conv2d) -> Tensor:
    """x under another kernel of the host's kind."""
    return F.conv2d(x, kernel, None, host.stride, host.padding, host.dilation, host.groups)
