"""The shared parts against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, random_model
from torch import nn

from minisd.layers import (
    GEGLU,
    MLP,
    Attention,
    ResBlock,
    Transformer2D,
    TransformerLayer,
    timestep_features,
    to_image,
    to_tokens,
)

CLOSE = 1e-6


def made(layer, *args, **kwargs) -> nn.Module:
    return random_model(lambda _: layer(*args, **kwargs), None)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_timestep_features_are_cosines_then_sines():
    t = torch.tensor([0.0, 1.0, 999.0])
    features = timestep_features(t, 8)
    assert torch.equal(features[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    for i in range(4):
        frequency = 10_000 ** (-i / 4)
        assert features[2, i].item() == pytest.approx(math.cos(999 * frequency), abs=1e-4)
        assert features[2, 4 + i].item() == pytest.approx(math.sin(999 * frequency), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64, torch.bfloat16])
def test_timestep_features_are_float32_whatever_the_time(dtype):
    features = timestep_features(torch.tensor([16], dtype=dtype), 320)
    assert features.dtype == torch.float32 and torch.equal(features, timestep_features(torch.tensor([16.0]), 320))


def test_mlp():
    mlp = made(MLP, 6, 8)
    x = normal(2, 6)
    hidden = x @ mlp.in_proj.weight.T + mlp.in_proj.bias
    expected = (hidden * hidden.sigmoid()) @ mlp.out_proj.weight.T + mlp.out_proj.bias
    assert_close("MLP", mlp(x), expected, CLOSE)


def test_attention_is_softmax_of_scaled_products():
    attention = made(Attention, 8, 6, heads=2)
    x, context = normal(1, 5, 8), normal(1, 3, 6, seed=2)
    q, k, v = attention.q(x), attention.k(context), attention.v(context)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)).softmax(dim=-1)
        heads.append(scores @ v[..., part])
    assert_close("attention", attention(x, context), attention.out(torch.cat(heads, dim=-1)), CLOSE)


def test_causal_attention_does_not_see_what_follows():
    attention = made(Attention, 8, 8, heads=2)
    x, changed = normal(1, 5, 8), normal(1, 5, 8)
    changed[:, 3:] += 1
    assert torch.equal(attention(x, x, causal=True)[:, :3], attention(changed, changed, causal=True)[:, :3])
    assert not torch.equal(attention(x, x)[:, :3], attention(changed, changed)[:, :3])


def test_biases_of_attention():
    assert [name for name, _ in Attention(8, 8, 2).named_parameters() if "bias" in name] == ["out.bias"]
    assert len([name for name, _ in Attention(8, 8, 2, bias=True).named_parameters() if "bias" in name]) == 4


def test_geglu_gates_the_first_half_by_the_second():
    ff = made(GEGLU, 4)
    x = normal(2, 3, 4)
    both = ff.in_proj(x)
    assert_close("GEGLU", ff(x), ff.out_proj(both[..., :16] * F.gelu(both[..., 16:])), CLOSE)


def test_transformer_layer_adds_its_three_parts():
    layer = made(TransformerLayer, 8, 6, heads=2)
    x, context = normal(2, 5, 8), normal(2, 3, 6)
    a = x + layer.self_attn(layer.norm1(x), layer.norm1(x))
    b = a + layer.cross_attn(layer.norm2(a), context)
    assert_close("layer", layer(x, context), b + layer.ff(layer.norm3(b)), CLOSE)


def test_projections_as_convolution_and_as_linear_are_the_same_thing():
    conv = made(Transformer2D, 8, depth=2, heads=2, context_dim=6, groups=4, linear=False)
    linear = Transformer2D(8, depth=2, heads=2, context_dim=6, groups=4, linear=True)
    linear.load_state_dict({name: t.flatten(1) if t.dim() == 4 else t for name, t in conv.state_dict().items()})
    x, context = normal(2, 8, 3, 5), normal(2, 7, 6)
    assert_close("transformer", linear(x, context), conv(x, context), CLOSE)


def test_tokens_are_pixels_row_by_row():
    x = normal(2, 3, 4, 5)
    assert torch.equal(to_tokens(x)[:, 1 * 5 + 2], x[:, :, 1, 2])
    assert torch.equal(to_image(to_tokens(x), x), x)


@pytest.mark.parametrize("c_out", [8, 12])
def test_resblock(c_out):
    block = made(ResBlock, 8, c_out, groups=4, eps=1e-5, time_dim=6)
    x, time = normal(2, 8, 4, 4), normal(2, 6)
    h = block.conv1(F.silu(block.norm1(x))) + block.time(F.silu(time))[:, :, None, None]
    shortcut = x if c_out == 8 else block.skip(x)
    assert_close("block", block(x, time), shortcut + block.conv2(F.silu(block.norm2(h))), CLOSE)


def test_resblock_without_time_is_the_autoencoders():
    block = made(ResBlock, 8, 8, groups=4, eps=1e-6)
    assert block(normal(1, 8, 4, 4)).shape == (1, 8, 4, 4)
    assert not [name for name, _ in block.named_parameters() if name.startswith(("time", "skip"))]
