"""SD1.5 at full size on random weights, once: each part beside the reference, every layer, with time and memory."""

import resource
import time
from collections.abc import Callable

import pytest
import torch
from comparison import random_model
from conftest import TOLERANCE

from minisd.clip import CLIPText
from minisd.config import CLIP_L, SD15, VAEConfig
from minisd.unet import UNet
from minisd.vae import VAE

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
from reference.peers import text_like, unet_like, vae_like  # noqa: E402
from reference.side_by_side import (  # noqa: E402
    compare_decoders,
    compare_encoders,
    compare_texts,
    compare_unets,
    normal,
    unet_inputs,
    words,
)

TOL = TOLERANCE[torch.float32]


@pytest.fixture
def timed(measured) -> Callable[[str, float, float], None]:
    def note(component: str, difference: float, start: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
        seconds = time.process_time() - start
        measured(f"full size {component}: {seconds:.0f} CPU s, peak {peak:.1f} GiB", difference)
    return note


def test_unet(timed):
    start = time.process_time()
    ours = random_model(UNet, SD15)
    timed("UNet at 16x16 latents", compare_unets(ours, unet_like(ours), unet_inputs(SD15, 16, 16, batch=1), TOL), start)


def test_vae(timed):
    start = time.process_time()
    ours = random_model(VAE, VAEConfig())
    theirs = vae_like(ours)
    worst = max(compare_encoders(ours, theirs, normal(1, 3, 128, 128), TOL),
                compare_decoders(ours, theirs, normal(1, 4, 16, 16), TOL))
    timed("VAE at 128x128 pixels", worst, start)


def test_text(timed):
    start = time.process_time()
    ours = random_model(CLIPText, CLIP_L)
    timed("CLIP text", compare_texts(ours, text_like(ours), words(CLIP_L), TOL), start)
