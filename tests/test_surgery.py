"""Surgery: the students' exact sizes, their first weights by block identity, and that removing what does nothing
changes nothing."""

from dataclasses import replace

import pytest
import torch
from comparison import on_meta
from tiny import TINY_UNETS

from minisd.config import BK_BASE, BK_SMALL, BK_TINY, SD15, SD15_MIDLESS, SD21, SDXL
from minisd.errors import USAGE, MinisdError
from minisd.sites import unet_sites
from minisd.surgery import NAMES, cuts, origins, pairs, student, transplant
from minisd.unet import UNet

TEACHER = TINY_UNETS["sd15"]                      # widths 16, 32, 64, 64; two blocks a stage
UNEVEN = replace(TEACHER, widths=(16, 32, 64), depths=(0, 1, 1), layers=1)  # the embedded model's shape


@pytest.fixture
def teacher():
    return random_unet(TEACHER)


def random_unet(cfg):
    torch.manual_seed(0)
    return UNet(cfg).double()


def answer(unet, sites=None):
    gen = torch.Generator().manual_seed(1)
    x, context = (torch.randn(shape, generator=gen, dtype=torch.float64) for shape in ((2, 4, 8, 8), (2, 5, 48)))
    with torch.no_grad():
        return unet(x, torch.tensor([3, 700]), context)


# --- configs ---


@pytest.mark.parametrize("words, preset, count", [
    (["midless"], SD15_MIDLESS, 762_482_884), (["mid"], SD15_MIDLESS, 762_482_884),
    (["bk-base"], BK_BASE, 579_384_964), (["block.0", "block.1", "block.2", "block.3"], BK_BASE, 579_384_964),
    (["bk-small"], BK_SMALL, 482_346_884), (["bk-base", "mid"], BK_SMALL, 482_346_884),
    (["bk-tiny"], BK_TINY, 323_384_964),
], ids=str)
def test_students_of_sd15_have_the_published_sizes(words, preset, count):
    """BK-SDM's model card and Segmind's; facts.md has the integers."""
    cfg = student(SD15, words)
    assert cfg == preset
    assert sum(p.numel() for p in on_meta(UNet, cfg).parameters()) == count


@pytest.mark.parametrize("teacher", [SD15, SD21, SDXL], ids=["sd15", "sd21", "sdxl"])
def test_the_same_words_for_every_family(teacher):
    cfg = student(teacher, ["bk-tiny"])
    assert (cfg.widths, cfg.depths, cfg.layers, cfg.mid_depth) == (teacher.widths[:-1], teacher.depths[:-1], 1, None)


def test_every_cut_alone_and_some_together():
    assert cuts(SD15) == ["mid", *(f"block.{i}" for i in range(4)), "attn.0", "attn.1", "attn.2", "stage.3"]
    assert cuts(UNEVEN) == ["mid", "attn.1", "attn.2", "stage.2"]
    assert student(SD15, ["block.1"]).layers == (2, 1, 2, 2)
    assert student(SD15, ["block.3", "stage.3"]).layers == 2
    assert student(SD15, ["attn.1", "mid"]) == replace(SD15, depths=(1, 0, 1, 0), mid_depth=None)
    assert student(SD15, []) == SD15


@pytest.mark.parametrize("teacher, removed, words", [
    (SD15, ["midd"], "this is no cut"), (SD15, ["block.x"], "this is no cut"), (SD15, ["layer.1"], "this is no cut"),
    (SD15_MIDLESS, ["mid"], "there is no mid block"), (SD15, ["attn.3"], "stage 3 has no transformers"),
    (UNEVEN, ["bk-base"], "stage 0 has one residual block"), (SD15, ["block.2"] * 2, "stage 2 has one residual block"),
    (SD15, ["stage.1"], "only the innermost"), (SD15, ["stage.4"], "there are 4 stages"),
    (SD15, ["stage.3", "stage.2", "stage.1", "stage.0"], "only the innermost of several"),
])
def test_what_cannot_be_removed(teacher, removed, words):
    with pytest.raises(MinisdError, match=words) as error:
        student(teacher, removed)
    assert error.value.code == USAGE and "midless" in error.value.remedy


@pytest.mark.parametrize("other", [
    replace(TEACHER, layers=3), replace(TEACHER, widths=(16, 32, 64, 128)), replace(TEACHER, depths=(1, 1, 1, 1)),
    replace(TEACHER, mid_depth=2), replace(student(TEACHER, ["stage.3"]), mid_depth=1),
    replace(TEACHER, in_channels=9), replace(TEACHER, groups=8),
])
def test_what_is_no_part_of_the_teacher(teacher, other):
    with pytest.raises(MinisdError, match="not a part of the teacher"):
        transplant(teacher, other)


@pytest.mark.parametrize("removed", [*([name] for name in NAMES), ["block.1", "attn.0"], ["stage.3", "block.0"], []],
                         ids=str)
def test_paired_sites_have_one_shape(removed):
    cfg = student(SD15, removed)
    theirs, mine = unet_sites(SD15, 64, 40), unet_sites(cfg, 64, 40)
    found = pairs(SD15, cfg)
    assert all(mine[a] == theirs[b] for a, b in found.items())
    assert len(found) == 2 * len(cfg.widths) + (removed in (["bk-base"], ["block.1", "attn.0"], []))


# --- first weights ---


def test_the_blocks_that_bk_sdm_keeps():
    """Of three blocks on the way up the first and the last (facts.md, section 1)."""
    found = origins(SD15, BK_TINY)
    assert found["down.2.res.0"] == "down.2.res.0" and "down.2.res.1" not in found
    assert found["up.0.res.0"] == "up.1.res.0" and found["up.0.res.1"] == "up.1.res.2"
    assert found["up.2.attn.1"] == "up.3.attn.2" and found["up.1.upsample"] == "up.2.upsample"
    assert origins(SD15, replace(SD15, layers=(1, 2, 2, 2)))["up.3.res.1"] == "up.3.res.2"
    assert origins(SD15, SD15_MIDLESS)["up.0.res.1"] == "up.0.res.1"


@pytest.mark.parametrize("removed", [*([name] for name in NAMES), ["block.1", "attn.0", "mid"]], ids=str)
def test_every_weight_is_a_copy_of_the_teachers(teacher, removed):
    """No two random tensors are equal, so each must be found once, in a block of the same kind."""
    cfg = student(TEACHER, removed)
    made, theirs = transplant(teacher, cfg), teacher.state_dict()
    ones = {name for name, tensor in theirs.items() if tensor.unique().numel() == 1}  # fresh norms
    for name, tensor in made.state_dict().items():
        found = [other for other, there in theirs.items() if there.shape == tensor.shape and torch.equal(there, tensor)]
        leaf = name.rpartition("res.")[2] or name
        assert found and (len(found) == 1 or ones.issuperset(found)), name
        assert any(other.split(".")[-2:] == leaf.split(".")[-2:] for other in found), name
        assert tensor.data_ptr() not in {there.data_ptr() for there in theirs.values()}
    assert made.cfg == cfg and all(p.requires_grad for p in made.parameters())


def test_nothing_removed_is_the_teacher(teacher):
    assert torch.equal(answer(transplant(teacher, TEACHER)), answer(teacher))


def silence(*modules):
    """Residual branches and transformers that add nothing."""
    for module in modules:
        last = module.conv2 if "conv2" in dict(module.named_children()) else module.proj_out
        last.weight.data.zero_()
        last.bias.data.zero_()


def silence_reading(block, width):
    """A block of the way up that hands on the first half of what it reads."""
    silence(block)
    block.skip.weight.data.zero_()
    block.skip.weight.data[:width, :width, 0, 0] = torch.eye(width)
    block.skip.bias.data.zero_()


@pytest.mark.parametrize("cut", cuts(TEACHER))
def test_removing_what_does_nothing_changes_nothing(teacher, cut):
    kind, _, number = cut.partition(".")
    i = int(number or 0)
    down, up = teacher.down[i], teacher.up[3 - i]
    if kind == "mid":
        silence(*teacher.mid.res, *teacher.mid.attn)
    if kind == "attn":
        silence(*down.attn, *up.attn)
    if kind == "block":
        silence(down.res[1], *down.attn[1:2], *up.attn[1:2])
        silence_reading(up.res[1], TEACHER.widths[i])
    if kind == "stage":                            # the block above reads nothing of what comes from below
        silence_below(teacher.up[1].res[0], TEACHER.widths[i])
    cfg = student(TEACHER, [cut])
    made = answer(transplant(teacher, cfg))
    torch.testing.assert_close(made, answer(teacher), rtol=0, atol=1e-12)


def silence_below(block, width):
    """A block that reads nothing of its first `width` channels, whose groups are not the skip's."""
    block.conv1.weight.data[:, :width] = 0
    block.skip.weight.data[:, :width] = 0


def test_a_stage_that_leaves_a_block_with_other_inputs():
    """As in the embedded model: 64 channels came from below, 32 come now; the skip's 32 keep their weights."""
    big = random_unet(UNEVEN)
    with torch.no_grad():
        big.up[1].res[0].norm1.bias.normal_()
        big.up[1].res[0].norm1.weight.normal_()
    theirs, mine = big.up[1].res[0], transplant(big, student(UNEVEN, ["stage.2"])).up[0].res[0]
    assert torch.equal(mine.conv1.weight[:, 32:], theirs.conv1.weight[:, 64:]) and not mine.conv1.weight[:, :32].any()
    assert torch.equal(mine.skip.weight[:, 32:], theirs.skip.weight[:, 64:]) and not mine.skip.weight[:, :32].any()
    assert torch.equal(mine.norm1.weight[32:], theirs.norm1.weight[64:]) and (mine.norm1.weight[:32] == 1).all()
    assert torch.equal(mine.norm1.bias[32:], theirs.norm1.bias[64:]) and not mine.norm1.bias[:32].any()
    assert torch.equal(mine.conv2.weight, theirs.conv2.weight)
