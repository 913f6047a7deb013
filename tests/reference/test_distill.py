"""Students beside diffusers: each is a UNet that diffusers loads, and the three terms are those of hooks on its."""

from dataclasses import replace

import pytest
import torch
from comparison import assert_close, random_model
from families import FAMILIES

from minisd import store, surgery
from minisd.sites import Sites
from minisd.unet import UNet
from weights_convert.__main__ import main

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
from reference.peers import unet_like  # noqa: E402

TEACHER = FAMILIES["sd15"].unet
CUTS = (["midless"], ["bk-base"], ["bk-small"], ["bk-tiny"], ["attn.1", "block.0", "block.3"])


@pytest.fixture(scope="module")
def question():
    gen = torch.Generator().manual_seed(0)
    return (torch.randn(2, 4, 8, 8, generator=gen), torch.tensor([3, 700]), torch.randn(2, 7, 64, generator=gen))


@pytest.fixture(scope="module")
def teacher():
    return random_model(UNet, TEACHER)


@pytest.mark.parametrize("removed", CUTS, ids=str)
def test_diffusers_loads_every_student(teacher, removed, question, tmp_path):
    """Saved with its config, converted, and read by `from_pretrained`, which misses no key and finds none too many."""
    student = surgery.transplant(teacher, surgery.student(TEACHER, removed)).eval()
    cfg = replace(FAMILIES["sd15"], unet=student.cfg)
    others = {name: random_model(build.func, build.args[0]) for name, build in store.parts(cfg).items()
              if name != "unet"}
    store.save(tmp_path / "ours", cfg, {"unet": student, **others}, torch.float32)
    assert main([str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "diffusers"]) == 0
    theirs, info = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "theirs" / "unet",
                                                                  output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in student.parameters())
    with torch.no_grad():
        assert_close("answer", student(*question), theirs(*question).sample, 1e-5)  # as test_convert has it


def hooked(unet):
    """The first output of every down and up block, as BK-SDM's trainer takes them."""
    found = {}
    for kind in ("down", "up"):
        for i, block in enumerate(getattr(unet, f"{kind}_blocks")):
            block.register_forward_hook(lambda _, __, out, key=f"{kind}.{i}": found.__setitem__(
                key, out[0] if isinstance(out, tuple) else out))
    return found


@pytest.mark.parametrize("removed", [["midless"], ["bk-base"], ["bk-small"]], ids=str)
def test_features_are_those_of_hooks_on_diffusers_blocks(teacher, removed, question):
    """The eight points of BK-SDM's trainer, and no other but the mid block's where the student has one."""
    student = surgery.transplant(teacher, surgery.student(TEACHER, removed)).eval()
    pairs = surgery.pairs(TEACHER, student.cfg)
    assert len(set(pairs) - {"mid"}) == 8 and ("mid" in pairs) == (removed == ["bk-base"])
    for unet, sites in ((student, tuple(pairs)), (teacher, tuple(pairs.values()))):
        peer, kept = unet_like(unet), Sites(keep=sites)
        theirs = hooked(peer)
        with torch.no_grad():
            unet(*question, None, kept)
            peer(*question)
        for site, expected in theirs.items():
            assert_close(site, kept.kept[site if site in kept.kept else f"{site}.downsample"], expected, 0)
