"""The UNet by torch.compile, as one graph for all sizes and numbers of pictures.

Its layers stay as `passes.quicken` leaves them: their operators are those that the compiler itself takes, and it packs
no weights where sizes vary. What it brings are single loops for all that lies between the products. PyTorch's own
convolutions, such as those of a LoRA beside convolutions, have a second graph for batches of one; with tokens merged
every size and every number of pictures has its own. Where features are used again, the whole calls are compiled.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx.experimental import _config as shapes

from minisd.errors import RESOURCE, MinisdError
from minisd.sites import NO_SITES, Sites
from minisd.unet import UNet

BACKEND = "inductor"
GRAPHS = 64                                       # a model with other LoRAs beside it is another graph


class CompiledUNet(UNet):
    """Traced and compiled when it is first called, which takes a minute or more."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor, label: Tensor | None = None,
                sites: Sites = NO_SITES) -> Tensor:
        """As the UNet's."""
        try:
            with settings():
                return whole()(self, x, t, context, label, sites)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            raise MinisdError("the UNet could not be compiled", "--compile", str(error).strip()[:200].splitlines()[0],
                              "install a C++ compiler such as g++, or draw without", RESOURCE) from error


@contextmanager
def settings() -> Iterator[None]:
    """A batch of one would else have a graph of its own, since the compiler takes every 1 for a constant."""
    tracer: Any = torch._dynamo.config
    with cast(Any, shapes).patch(backed_size_oblivious=True), tracer.patch(recompile_limit=GRAPHS):
        yield


@cache
def whole() -> Callable[..., Tensor]:
    """The compiler's own of `UNet.forward`, for every UNet."""
    return torch.compile(UNet.forward, fullgraph=True, dynamic=True, backend=BACKEND)


def compile_unet(unet: UNet) -> UNet:
    """The same UNet, compiled; `passes.plain` gives it back as it was."""
    unet.__class__ = CompiledUNet
    return unet
