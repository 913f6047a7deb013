"""LPIPS on random weights: its formula, its names, and what it says of files without them."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from minisd.errors import BAD_FILE, MinisdError
from minisd.train.perceptual import LPIPS, load_lpips, unit

# torchvision's vgg16().features: a number is a convolution's width, M a pooling.
LAYOUT = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


@pytest.fixture(scope="module")
def reference():
    """VGG16's features as torchvision builds them, and five lin layers; small random weights."""
    torch.manual_seed(0)
    layers, c_in = [], 3
    for item in LAYOUT:
        layers += [nn.MaxPool2d(2, 2)] if item == "M" else [nn.Conv2d(c_in, item, 3, padding=1), nn.ReLU()]
        c_in = c_in if item == "M" else item
    lins = [torch.rand(1, width, 1, 1) for width in (64, 128, 256, 512, 512)]
    return nn.Sequential(*layers).requires_grad_(False), lins


@pytest.fixture(scope="module")
def weights(reference):
    features, lins = reference
    return ({f"features.{name}": t for name, t in features.state_dict().items()}
            | {f"lin{n}.model.1.weight": lin for n, lin in enumerate(lins)})


@pytest.fixture(scope="module")
def lpips(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    save_file(weights | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return load_lpips(path)


@pytest.fixture
def pair():
    return torch.rand(2, 2, 3, 32, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_is_the_papers_distance(reference, lpips, pair):
    """Equation 1 of the paper, written out with torchvision's layout."""
    features, lins = reference
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def taps(x):
        h = ((x + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]
        for place, layer in enumerate(features):
            h = layer(h)
            if place in (3, 8, 15, 22, 29):
                yield F.normalize(h, dim=1)

    expected = sum((lin * (a - b) ** 2).sum(dim=1).mean(dim=(1, 2))
                   for lin, a, b in zip(lins, taps(pair[0]), taps(pair[1]), strict=True))
    torch.testing.assert_close(lpips(*pair), expected, rtol=2e-2, atol=0)     # its code rounds mean and deviation


def test_it_is_a_distance(lpips, pair):
    x, y = pair
    assert lpips(x, y).shape == (2,) and (lpips(x, y) > 0).all()
    assert (lpips(x, x) == 0).all() and torch.equal(lpips(x, y), lpips(y, x))
    assert (lpips(x, x + 0.01 * (y - x)) < lpips(x, y)).all()


def test_features_halve_from_stage_to_stage(lpips, pair):
    assert [tuple(f.shape[1:]) for f in lpips.features(pair[0])] == [
        (64, 32, 40), (128, 16, 20), (256, 8, 10), (512, 4, 5), (512, 2, 2)]


def test_gradients_reach_the_picture_and_nothing_else(lpips, pair):
    x = pair[0].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = lpips(x, pair[1])
    distance.sum().backward()
    assert distance.dtype == torch.float32 and x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert not [name for name, p in lpips.named_parameters() if p.requires_grad]


def test_features_of_nothing_have_no_direction_and_no_nan():
    assert (unit(torch.zeros(1, 4, 2, 2)) == 0).all()
    assert unit(torch.full((1, 4, 1, 1), 3.0))[0, :, 0, 0].tolist() == [0.5] * 4


def test_the_packages_own_names(weights, lpips, pair, tmp_path):
    slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
    named = {(f"net.slice{slices[int(name.split('.')[1])]}." + name.removeprefix("features.")
              if name.startswith("features") else name): tensor for name, tensor in weights.items()}
    save_file(named | {"scaling_layer.shift": torch.zeros(1)}, tmp_path / "lpips.safetensors")
    assert torch.equal(load_lpips(tmp_path / "lpips.safetensors")(*pair), lpips(*pair))


def test_files_without_its_weights(weights, tmp_path):
    def refused(words):
        with pytest.raises(MinisdError) as error:
            load_lpips(tmp_path / "x.safetensors")
        assert error.value.code == BAD_FILE and words in str(error.value)

    refused("cannot be read")
    (tmp_path / "x.safetensors").write_bytes(b"junk")
    refused("cannot be read")
    save_file({name: t for name, t in weights.items() if not name.startswith("lin3")}, tmp_path / "x.safetensors")
    refused("1 are missing or of another shape, the first lins.3.weight")
    save_file(weights | {"lin3.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "x.safetensors")
    refused("1 are missing or of another shape, the first lins.3.weight")


def test_its_size():
    with torch.device("meta"):
        count = sum(p.numel() for p in LPIPS().parameters())
    assert count == 14_714_688 + 64 + 128 + 256 + 512 + 512                   # VGG16's convolutions, and the lin layers
