"""Tokens merged: the matching beside a plain one of loops, what is left of a picture of any size, and the way back."""

import math
from dataclasses import replace

import pytest
import torch
from comparison import difference, random_model
from tiny import TINY_UNETS
from torch import Tensor

from minisd.fast import merging
from minisd.fast.merging import MergedAttention, Merging, match, means, merged, merges
from minisd.fast.passes import plain, quicken
from minisd.fast.reuse import Reusing
from minisd.layers import Attention
from minisd.unet import UNet

SIZES = [(8, 8), (5, 7), (1, 1), (1, 5), (6, 1), (2, 2)]
SHARES = [0.0, 0.1, 0.25, 0.5, 0.75]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def by_hand(tokens: list[list[float]], height: int, width: int, share: float) -> list[list[int]]:
    """Groups of tokens that become one, by the paper's words: the first of each is the one that stays."""
    stay = [y * width + x for y in range(0, height, 2) for x in range(0, width, 2)]
    groups = {n: [n] for n in range(len(tokens))}
    edges = []
    for n in range(len(tokens)):
        if n not in stay:
            alike = [cosine(tokens[n], tokens[m]) for m in stay]
            edges.append((max(alike), n, stay[alike.index(max(alike))]))
    for _, n, m in sorted(edges, reverse=True)[:int(share * len(tokens))]:
        groups[m] += groups.pop(n)
    return list(groups.values())


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tokens_are_matched_as_by_hand(size: tuple[int, int], share: float) -> None:
    tokens = normal(size[0] * size[1], 6, seed=sum(size))
    groups = by_hand(tokens.tolist(), *size, share)
    place = match(tokens, *size, share)
    assert {tuple(sorted(group)) for group in groups} == {
        tuple((place == n).nonzero()[:, 0].tolist()) for n in range(len(groups))}
    assert len(groups) == len(tokens) - merges(*size, share)
    few = means(tokens, place, len(groups))
    for group in groups:
        expected = [math.fsum(tokens[n, c].item() for n in group) / len(group) for c in range(6)]
        torch.testing.assert_close(few[place[group[0]]], torch.tensor(expected))


def test_attention_among_fewer_is_attention_of_what_is_left() -> None:
    attention, x = random_model(lambda cfg: Attention(16, 16, 2), None), normal(3, 35, 16)
    found = MergedAttention(attention, (5, 7), 0.5)(x, x)
    for picture, out in zip(x, found, strict=True):
        groups = by_hand(picture.tolist(), 5, 7, 0.5)
        left = torch.stack([picture[group].mean(dim=0) for group in groups])[None]
        answers = attention(left, left)[0]
        for group, answer in zip(groups, answers, strict=True):
            torch.testing.assert_close(out[group], answer.expand(len(group), -1), rtol=1e-4, atol=1e-5)


def test_what_is_alike_in_fours_loses_nothing_by_being_one() -> None:
    """Four equal keys have four times the weight of one, and all have."""
    attention, small = random_model(lambda cfg: Attention(16, 16, 2), None), normal(1, 16, 3, 4)
    x = small.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(2).transpose(1, 2)
    found = MergedAttention(attention, (6, 8), 0.75)(x, x)
    torch.testing.assert_close(found, attention(x, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nothing_merged_is_nothing_changed(dtype: torch.dtype) -> None:
    attention, x = random_model(lambda cfg: Attention(16, 16, 2), None).to(dtype), normal(2, 35, 16).to(dtype)
    assert torch.equal(MergedAttention(attention, (5, 7), 0.0)(x, x), attention(x, x))


def test_a_picture_is_matched_as_if_it_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(3, 63, 16)
    alone = [match(picture, 7, 9, 0.5) for picture in x]
    monkeypatch.setattr(merging, "CHUNK", 50)     # in many pieces
    for picture, place in zip(x, alone, strict=True):
        assert torch.equal(match(picture, 7, 9, 0.5), place)


def test_at_most_what_need_not_stay_is_merged() -> None:
    assert [merges(1, 1, 0.75), merges(1, 4, 0.75), merges(2, 2, 0.75), merges(64, 64, 0.5)] == [0, 2, 3, 2048]


def test_equal_tokens_are_no_trouble() -> None:
    for tokens in (torch.zeros(63, 4), torch.ones(63, 4)):
        place = match(tokens, 7, 9, 0.5)
        assert torch.equal(match(tokens, 7, 9, 0.5), place) and len(place.unique()) == 63 - 31


# ---------------------------------------------------------------- in a UNet
def told(unet: UNet, batch: int = 2) -> tuple[Tensor, ...]:
    cfg = unet.cfg
    label = (normal(batch, cfg.label_dim, seed=3),) if cfg.label_dim else ()
    return (normal(batch, cfg.in_channels, 11, 14, seed=1), torch.linspace(900.0, 17.0, batch),
            normal(batch, 5, cfg.context_dim, seed=2), *label)


@pytest.mark.parametrize(("name", "size", "merging_layers"), [
    ("sd15", (11, 14), 5), ("sdxl", (6, 7), 10), ("bk-tiny", (11, 14), 3), ("sd15-midless", (11, 14), 5)])
def test_the_outermost_transformers_merge(name: str, size: tuple[int, int], merging_layers: int) -> None:
    unet = random_model(UNet, TINY_UNETS[name])
    with merged(unet, 0.5, 11, 14):
        found = [(path, module) for path, module in unet.named_modules() if type(module) is MergedAttention]
    stage = next(n for n, depth in enumerate(unet.cfg.depths) if depth)
    assert len(found) == merging_layers and {module.size for _, module in found} == {size}
    assert {path[:path.index(".attn")] for path, _ in found} == {f"down.{stage}", f"up.{len(unet.up) - 1 - stage}"}


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd15-midless", "bk-tiny"])
def test_a_unet_merges_while_it_is_called_and_no_longer(name: str) -> None:
    unet = random_model(UNet, TINY_UNETS[name])
    kinds, names = [type(module) for module in unet.modules()], [path for path, _ in unet.named_modules()]
    with torch.inference_mode():
        before = unet(*told(unet))
        changes = [difference(Merging(unet, unet, share)(*told(unet)), before).relative for share in (0.0, 0.1, 0.6)]
        assert changes[0] == 0 < changes[1] < changes[2]
        assert torch.equal(unet(*told(unet)), before)
        with pytest.raises(RuntimeError):
            Merging(unet, unet, 0.5)(*told(unet)[:2], normal(2, 5, 3), *told(unet)[3:])
        assert torch.equal(unet(*told(unet)), before)
    assert [type(module) for module in unet.modules()] == kinds
    assert [path for path, _ in unet.named_modules()] == names


def test_a_unet_without_transformers_has_nothing_to_merge() -> None:
    unet = random_model(UNet, replace(TINY_UNETS["sd15"], depths=(0, 0, 0, 0), mid_depth=None))
    assert torch.equal(Merging(unet, unet, 0.5)(*told(unet)), unet(*told(unet)))


def test_quickened_layers_merge_the_same() -> None:
    unet = random_model(UNet, TINY_UNETS["sd15"])
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        expected = Merging(unet, unet, 0.5)(*told(unet))
        quicken(unet)
        assert difference(Merging(unet, unet, 0.5)(*told(unet)), expected).relative < 2e-5
        plain(unet)
        assert torch.equal(Merging(unet, unet, 0.5)(*told(unet)), expected)


def test_merging_goes_with_reusing() -> None:
    unet = random_model(UNet, TINY_UNETS["sd15"])
    with torch.inference_mode():
        both, reusing = Merging(Reusing(unet, 2), unet, 0.5), Reusing(unet, 2)
        whole, part = both(*told(unet)), both(*told(unet))
        assert torch.equal(whole, Merging(unet, unet, 0.5)(*told(unet)))
        with merged(unet, 0.5, 11, 14):
            expected = [reusing(*told(unet)), reusing(*told(unet))]
        assert torch.equal(whole, expected[0]) and torch.equal(part, expected[1])
