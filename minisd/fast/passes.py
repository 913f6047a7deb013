"""Which modules a pass changes, and the way back.

A module keeps its place, its children and its parameters; only its class changes, and with it how it computes. So
whoever holds a module still holds the one that draws, and modules that others have put in place stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
from torch import nn

from minisd.fast.attention import ChunkedAttention, worthwhile
from minisd.fast.beside import OneDNNLoRALinear, OneDNNLoRAPoint, PackedLoRAConv2d
from minisd.fast.compiled import CompiledUNet
from minisd.fast.doubling import DoublingConv2d, DoublingStage, doubled_in, pack_twice, packable, unpack_both
from minisd.fast.eightbit import FULL, Eight, swell
from minisd.fast.lean import LeanGEGLU, LeanGroupNorm, LeanResBlock, LeanTransformerLayer
from minisd.fast.onednn import (
    OneDNNLinear,
    OneDNNPoint,
    PackedConv2d,
    PackedLinear,
    owned,
    pack,
    pack_linear,
    serves,
    settled,
    unpack,
    unpack_linear,
)
from minisd.fast.phases import PhasedStage
from minisd.fast.strips import StripDecoder
from minisd.layers import GEGLU, Attention, ResBlock, TransformerLayer
from minisd.lora import LoRAConv2d, LoRALinear
from minisd.unet import Stage as UNetStage
from minisd.unet import UNet
from minisd.vae import Decoder, Stage

M = TypeVar("M", bound=nn.Module)
FASTER: Mapping[type[nn.Module], type[nn.Module]] = {
    ResBlock: LeanResBlock, GEGLU: LeanGEGLU, TransformerLayer: LeanTransformerLayer, nn.Linear: OneDNNLinear,
    LoRALinear: OneDNNLoRALinear, Stage: PhasedStage, UNetStage: DoublingStage, nn.GroupNorm: LeanGroupNorm,
    Decoder: StripDecoder}
# Convolutions of 1x1, and others.
CONVOLUTIONS: Mapping[type[nn.Module], tuple[type[nn.Conv2d], type[nn.Conv2d]]] = {
    nn.Conv2d: (OneDNNPoint, PackedConv2d), LoRAConv2d: (OneDNNLoRAPoint, PackedLoRAConv2d)}
PLAIN = {fast: plain for plain, fast in FASTER.items()} | {
    fast: plain for plain, both in CONVOLUTIONS.items() for fast in both} | {
    ChunkedAttention: Attention, CompiledUNet: UNet, DoublingConv2d: nn.Conv2d, PackedLinear: nn.Linear}
UNPACK: Mapping[type[nn.Module], Callable[..., None]] = {packed: unpack for _, packed in CONVOLUTIONS.values()} | {
    DoublingConv2d: unpack_both, PackedLinear: unpack_linear}


def quicken(model: M, packed: bool = True) -> M:
    """The same model, laid out to draw with, and on a CPU computed faster; done already, there is nothing to do.

    What is being trained is laid out and no more. `packed` fixes the order of weights as well: for those that nobody
    reads meanwhile.
    """
    doubled = doubled_in(model)
    with torch.inference_mode(False):             # they remain weights like any others
        for module in model.modules():
            kind = type(module)
            if kind in CONVOLUTIONS:
                _quicken_convolution(cast(nn.Conv2d, module), packed, module in doubled)
            elif kind is Attention and worthwhile() and serves(next(module.parameters())):
                module.__class__ = ChunkedAttention
            elif kind is nn.Linear and packed and serves(weight := cast(nn.Linear, module).weight) and owned(weight):
                module.__class__ = PackedLinear   # which takes either weight, should another thread compute meanwhile
                pack_linear(cast(nn.Linear, module))
            elif kind in FASTER and serves(next(module.parameters())):
                module.__class__ = FASTER[kind]
    return model


def _quicken_convolution(conv: nn.Conv2d, packed: bool, doubled: bool) -> None:
    served = serves(conv.weight)
    if served and packed and doubled and type(conv) is nn.Conv2d and packable(conv):
        pack_twice(conv)
        return
    if served and packed and conv.kernel_size != (1, 1) and settled(conv):
        pack(conv)
        conv.__class__ = CONVOLUTIONS[type(conv)][1]
        return
    conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if served and conv.kernel_size == (1, 1):
        conv.__class__ = CONVOLUTIONS[type(conv)][0]


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class that a module has or would have again."""
    return PLAIN.get(type(module), type(module))


def plain(model: M) -> M:
    """The model as it was, to train or to attach something to; weights keep their bits, and convolutions the layout.

    Those in 8 bits are in full size again, rounded as they are.
    """
    with torch.inference_mode(False):
        for module in model.modules():
            kind = type(module)
            if kind in UNPACK:
                UNPACK[kind](module)
            if kind in FULL:
                swell(cast(Eight, module))
            if kind in PLAIN:
                module.__class__ = PLAIN[kind]
    return model
