"""Blocks that are computed again: the same loss and gradients to the bit, less kept, and nothing else changed."""

import pytest
import torch
from comparison import random_model
from families import FAMILIES

from minisd.config import TINY
from minisd.sites import Sites
from minisd.train import loop, state
from minisd.train.config import TrainConfig
from minisd.train.recompute import RecomputedResBlock, RecomputedTransformer2D, lighten
from minisd.unet import UNet

KEPT = ("down.1.downsample", "mid", "up.2")


def made(lighter):
    unet = random_model(UNet, TINY).requires_grad_(True)
    if lighter:
        lighten(unet)
    return unet


def backward(unet, dtype=None):
    """The loss, every gradient, and how many bytes were kept for the way back."""
    gen, kept = torch.Generator().manual_seed(0), {}
    x, context = torch.randn(2, 4, 16, 16, generator=gen), torch.randn(2, 7, TINY.context_dim, generator=gen)

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    sites = Sites(keep=KEPT)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, dtype is not None):
            out = unet(x, torch.tensor([3, 700]), context, None, sites)
        loss = out.float().square().mean() + sum(sites.kept[name].float().square().mean() for name in KEPT)
        used = sum(kept.values())
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in unet.named_parameters()}, used


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_loss_and_gradients_are_the_same_to_the_bit_and_less_is_kept(dtype):
    loss, grads, kept = backward(made(lighter=False), dtype)
    again, others, less = backward(made(lighter=True), dtype)
    assert loss == again and grads.keys() == others.keys()
    assert all(torch.equal(grad, others[name]) for name, grad in grads.items())
    assert less < kept / 2


def test_names_and_places_stay_and_only_blocks_change():
    plain, lighter = made(lighter=False), made(lighter=True)
    assert list(plain.state_dict()) == list(lighter.state_dict())
    changed = {type(module).__name__ for module in lighter.modules()} - {type(m).__name__ for m in plain.modules()}
    assert changed == {RecomputedResBlock.__name__, RecomputedTransformer2D.__name__}
    lighten(lighter)                              # done already, there is nothing to do
    assert list(plain.state_dict()) == list(lighter.state_dict())


def test_the_loop_does_it_where_it_is_asked(tmp_path):
    class Task:
        def __init__(self):
            self.unet = UNet(FAMILIES["sd15"].unet)

        def trained(self):
            return self.unet

    for asked in (False, True):
        task, cfg = Task(), TrainConfig(recompute=asked)
        loop.Run(tmp_path, task, None, cfg, 0, state.State.new(task.trained(), cfg))
        assert any(isinstance(module, RecomputedResBlock) for module in task.unet.modules()) == asked
