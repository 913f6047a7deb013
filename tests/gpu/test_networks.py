"""UNet, VAE and text encoder on a device, in every precision, beside the processor's float32: layer by layer."""

from copy import deepcopy

import pytest
import torch
from comparison import assert_close, random_model, recorded
from precision import DTYPES, TOLERANCE
from tiny import TINY_UNETS
from torch import Tensor, nn

from minisd.clip import CLIPText
from minisd.config import TINY_MODEL, TINY_TEXT
from minisd.fast.passes import plain, quicken
from minisd.unet import UNet
from minisd.vae import VAE

NETWORKS = ("unet sd15", "unet sd21", "unet sdxl", "encoder", "decoder", "text")


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A small network on the processor, and what it is given."""
    if name.startswith("unet"):
        unet = random_model(UNet, TINY_UNETS[name.split()[1]])
        cfg = unet.cfg
        label = (normal(2, cfg.label_dim, seed=3),) if cfg.label_dim else ()
        return unet, (normal(2, 4, 8, 8), torch.tensor([999.0, 17.0]), normal(2, 7, cfg.context_dim, seed=2), *label)
    if name == "text":
        return random_model(CLIPText, TINY_TEXT), (torch.arange(3, 3 + TINY_TEXT.window)[None],)
    half = getattr(random_model(VAE, TINY_MODEL.vae), name)
    return half, (normal(1, 3, 32, 32) if name == "encoder" else normal(1, 4, 4, 4),)


def layers(module: nn.Module) -> list[str]:
    """The modules whose answers are compared: those that compute."""
    return [name for name, one in module.named_modules() if name and not list(one.children())]


def there(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Timesteps and token ids keep their kind."""
    return x.to(device, dtype if x.is_floating_point() and x.dim() > 1 else x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer(name: str, dtype: str, device: torch.device) -> None:
    network, given = made(name)
    kind, names = getattr(torch, dtype), layers(network)
    with torch.inference_mode():
        with recorded(network, names) as expected:
            network(*given)
        moved = deepcopy(network).to(device, kind)
        with recorded(moved, names) as found:
            moved(*(there(x, device, kind) for x in given))
    assert found.keys() == expected.keys() and len(found) > 5
    for layer, y in found.items():
        assert y.device.type == device.type and y.dtype == kind
        assert_close(layer, y.float().cpu(), expected[layer], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_quickened_and_back(name: str, dtype: str, device: torch.device) -> None:
    network, given = made(name)
    kind = getattr(torch, dtype)
    moved, given = network.to(device, kind), tuple(there(x, device, kind) for x in given)
    with torch.inference_mode():
        expected, weights = output(moved(*given)), deepcopy(moved.state_dict())
        found = output(quicken(moved)(*given))
        assert_close(name, found.float().cpu(), expected.float().cpu(), TOLERANCE[dtype])
        convolutions = [one for one in moved.modules() if type(one) is nn.Conv2d]
        assert all(one.weight.is_contiguous(memory_format=torch.channels_last) for one in convolutions)
        if device.type == "cuda":
            assert {type(one) for one in moved.modules()} == {type(one) for one in plain(moved).modules()}
        assert all(torch.equal(tensor, weights[key]) for key, tensor in plain(moved).state_dict().items())


def output(y: Tensor | tuple[Tensor, ...]) -> Tensor:
    return y if isinstance(y, Tensor) else y[0]
