"""bfloat16 weights: rounded without bias, updated as PyTorch's AdamW updates float32 ones, learnt where the nearest
rounding stands still; the same bits after a restart, on every rank and in every layout."""

import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from line import CFG as CFG_OF_LINE
from line import Line, fit, rows, same
from safetensors.torch import load_file
from torch import nn

from minisd.train import optim, rounding, state
from minisd.train.config import TrainConfig
from minisd.train.rounding import Made, Noise, RoundedAdamW, round_stochastically

CPU = torch.device("cpu")
CFG = TrainConfig(weights="bf16", lr=1e-3, weight_decay=0.1)


def noise(update=0, seed=0):
    return Noise(seed, update, Made.WEIGHTS, 1 << 20, CPU)


def neighbours(x):
    """The bfloat16 values below and above, by arithmetic: a step is 2^(exponent - 7)."""
    step = 2.0 ** (math.floor(math.log2(abs(x))) - 7)
    below = math.floor(x / step) * step
    return below, below + step


# --- rounding ---


@pytest.mark.parametrize("x", [1.0 + 2 ** -9, -1.001, 3.14159, 1e-30, -6.5e7, 1.9999, 2 ** -126 * 1.3])
def test_rounding_goes_to_a_neighbour_and_is_right_in_the_mean(x):
    """The share that goes up is the part of a step: a binomial of n draws, tested at 5 standard deviations."""
    x = torch.tensor(x).item()                    # as float32 has it
    rounded = torch.full((1 << 18,), x)
    round_stochastically(rounded, noise().bits(rounded.numel()))
    below, above = neighbours(x)
    assert set(rounded.tolist()) == {below, above}
    assert torch.equal(rounded, rounded.to(torch.bfloat16).float())
    part, n = (x - below) / (above - below), rounded.numel()
    up = (rounded == above).sum().item() / n
    assert abs(up - part) < 5 * math.sqrt(part * (1 - part) / n) + 2 ** -16


def test_what_bfloat16_holds_stays():
    exact = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0 ** 100, 3.0e-39, math.inf, -math.inf]).bfloat16().float()
    rounded = exact.repeat(1000)
    round_stochastically(rounded, noise().bits(rounded.numel()))
    assert torch.equal(rounded, exact.repeat(1000))
    nan = torch.full((1000,), math.nan)
    round_stochastically(nan, noise().bits(nan.numel()))
    assert nan.isnan().all()


def test_noise_is_uniform_and_its_pieces_are_uncorrelated():
    """Every bit is set half the time; neighbours, pieces and updates have nothing to do with each other."""
    n = 1 << 18
    one, other = noise(0), noise(1)
    draws = [one.bits(n).clone() for _ in range(3)] + [other.bits(n).clone()]
    assert min(draw.min().item() for draw in draws) >= 0 and max(draw.max().item() for draw in draws) < 1 << 16
    for draw in draws:
        for bit in range(16):
            assert abs((draw >> bit & 1).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(n)
    series = torch.stack([*draws, draws[0].roll(1)]).double()
    correlations = torch.corrcoef(series) - torch.eye(len(series))
    assert correlations.abs().max() < 5 / math.sqrt(n)


def test_noise_follows_from_seed_update_and_purpose():
    same, again = noise(5).bits(100).clone(), noise(5).bits(100).clone()
    others = [noise(6), noise(5, seed=1), Noise(0, 5, Made.AVERAGE, 1 << 20, CPU)]
    assert torch.equal(same, again)
    assert not any(torch.equal(same, other.bits(100)) for other in others)


# --- the optimiser ---


def weights(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def updated(p0, grads, cfg=CFG, seed=0):
    p = nn.Parameter(p0.clone())
    made = optim.optimizer({"p": p}, cfg, seed=seed)
    for grad in grads:
        p.grad = grad.clone()
        made.step()
    return p.detach(), made.state[p]


def test_one_update_is_that_of_pytorch_within_a_step_of_bfloat16():
    """Weights and moments, of a tensor of several pieces."""
    p0, grad = weights((300, 700), 0), weights((300, 700), 1)
    mine, slots = updated(p0, [grad])
    p = nn.Parameter(p0.float())
    theirs = torch.optim.AdamW([p], lr=CFG.lr, betas=CFG.betas, weight_decay=CFG.weight_decay)
    p.grad = grad.float()
    theirs.step()
    for ours, exact in ((mine, p.detach()), *((slots[name], theirs.state[p][name]) for name in rounding.MOMENTS)):
        assert ours.dtype == torch.bfloat16
        step = 2.0 ** (torch.frexp(exact).exponent - 8).double()
        assert ((ours.double() - exact.double()).abs() < step).all()
    assert slots["step"].item() == 1


def test_updates_are_those_of_pytorch_in_the_mean():
    """The mean over 4096 equal weights, after an update a hundred times smaller than a step of bfloat16."""
    value, n = 1.0, 4096
    cfg = TrainConfig(weights="bf16", lr=2 ** -7 / 100, weight_decay=0.0)
    p, _ = updated(torch.full((n,), value).bfloat16(), [torch.ones(n).bfloat16()], cfg)
    assert set(p.tolist()) == {1.0, 1.0 - 2 ** -8}           # below 1 the steps are half as wide
    part = cfg.lr / 2 ** -8
    assert abs((p < 1).float().mean().item() - part) < 5 * math.sqrt(part * (1 - part) / n)


def descended(cfg, dtype, steps=400):
    """Where a quadratic about 1.9 is left off, begun at 1: nearly equal curvatures, AdamW of one precision."""
    target = torch.full((256,), 1.9)
    p = nn.Parameter(torch.ones(256, dtype=dtype))
    made = optim.optimizer({"p": p}, cfg) if cfg is not None else torch.optim.AdamW([p], lr=1e-3, weight_decay=0.0)
    for _ in range(steps):
        p.grad = (p.detach().float() - target).to(dtype)
        made.step()
    return (p.detach().float() - target).abs().mean().item()


def test_a_quadratic_is_minimised_where_the_nearest_rounding_stands_still():
    """An update of 0.001 is less than half the step of bfloat16 above 1, which is 2^-7: plain bfloat16 never moves."""
    slow = TrainConfig(weights="bf16", lr=1e-3, weight_decay=0.0)
    assert descended(None, torch.bfloat16) == pytest.approx(0.9, abs=1e-2)
    exact = descended(None, torch.float32)
    assert 0.4 < exact < 0.6                                 # on its way after 400 steps of 0.001
    assert descended(slow, torch.bfloat16) == pytest.approx(exact, abs=5e-3)
    assert descended(slow, torch.bfloat16, 2000) < 0.02


def test_the_second_moment_forgets():
    """By the nearest rounding 0.999 v would be v for ever; here it falls as 0.999^n."""
    grads = [torch.full((4096,), 10.0).bfloat16(), *[torch.zeros(4096).bfloat16()] * 700]
    _, slots = updated(torch.ones(4096).bfloat16(), grads, TrainConfig(weights="bf16"))
    first = 0.001 * 100
    assert slots["exp_avg_sq"].float().mean().item() == pytest.approx(first * 0.999 ** 700, rel=0.01)


# --- the average ---


def averaged(steps, decay, n=4096):
    """The average of weights that stand at 1.5, begun at 1: of each of n numbers."""
    ema, p = {"w": torch.ones(n).bfloat16()}, nn.Parameter(torch.full((n,), 1.5).bfloat16())
    for step in range(steps):
        rounding.average(ema, {"w": p}, decay, 0, step)
    return ema["w"].float()


def test_the_average_is_the_closed_form_in_the_mean_and_close_in_every_number():
    """1.5 - 0.5 d^n; and no number is farther off than a few steps of bfloat16, here 2^-7."""
    steps, decay = 600, 0.999
    found, expected = averaged(steps, decay), 1.5 - 0.5 * 0.999 ** steps
    assert found.mean().item() == pytest.approx(expected, abs=2e-3)
    assert found.std().item() < 6 * 2 ** -7 and found.unique().numel() > 5
    plain = torch.ones(4).bfloat16()
    for _ in range(steps):
        plain.lerp_(torch.full((4,), 1.5).bfloat16(), 1 - decay)
    assert torch.equal(plain, torch.ones(4).bfloat16())     # the nearest rounding has not moved


# --- layouts and restarts ---


def conv_state(seed=0):
    """Channels-last weights, a bias, and a scalar."""
    torch.manual_seed(seed)
    module = nn.ModuleDict({"conv": nn.Conv2d(3, 40, 3).to(memory_format=torch.channels_last)})
    module.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    return state.State.new(module, CFG, seed=3)


def train(made, steps):
    for _ in range(steps):
        gen = torch.Generator().manual_seed(made.step)
        for p in made.params.values():
            p.grad = torch.randn(p.shape, generator=gen).bfloat16()
        made.optimizer.step()
        rounding.average(made.ema, made.params, 0.9, 3, made.step)
        made.step += 1


def equal(a, b):
    one, two = a.tensors(), b.tensors()
    return all(torch.equal(tensor, two[part][name]) for part in one for name, tensor in one[part].items())


def test_a_restored_state_goes_on_to_the_bit(tmp_path):
    whole, cut = conv_state(), conv_state()
    train(whole, 5)
    train(cut, 2)
    path = state.commit(tmp_path, cut, 2, {})
    back = conv_state(seed=1)
    back.restore(path)
    train(back, 3)
    assert equal(whole, back) and all(p.dtype == torch.bfloat16 for p in back.params.values())


def test_several_threads_make_the_same_bits(monkeypatch):
    monkeypatch.setitem(rounding.PIECE, "cpu", 1000)
    p0, grad = weights((300, 70), 0), weights((300, 70), 1)
    alone, threads = updated(p0, [grad] * 3), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = updated(p0, [grad] * 3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[0], together[0])
    assert all(torch.equal(alone[1][name], together[1][name]) for name in ("step", *rounding.MOMENTS))


def test_a_gradient_may_lie_otherwise_than_its_weights():
    p0, grad = weights((8, 6, 3, 3), 0), weights((8, 6, 3, 3), 1)
    wide = p0.to(memory_format=torch.channels_last)
    assert wide.stride() != grad.stride()
    one, _ = updated(wide, [grad])
    other, _ = updated(wide, [grad.to(memory_format=torch.channels_last)])
    assert torch.equal(one, other) and one.is_contiguous(memory_format=torch.channels_last)
    assert ((one.float() - p0.float()).abs() < 0.05).all()


def test_parameters_without_gradients_and_groups_without_parameters_are_left_alone():
    idle, p = nn.Parameter(torch.ones(3).bfloat16()), nn.Parameter(torch.ones(3).bfloat16())
    made = RoundedAdamW([{"params": []}, {"params": [idle, p]}], 0.1, (0.9, 0.999), 0)
    made.step()
    p.grad = torch.ones(3).bfloat16()
    made.step()
    assert idle not in made.state and torch.equal(idle.detach(), torch.ones(3).bfloat16()) and (p < 1).all()


def test_weights_of_the_other_precision_are_refused():
    with pytest.raises(ValueError, match="not bf16, the first p"):
        optim.optimizer({"p": nn.Parameter(torch.ones(2))}, CFG)
    with pytest.raises(ValueError, match="bf16 are computed with in bf16"):
        TrainConfig(weights="bf16", dtype="fp32")


# --- in the loop ---


ROUNDED = replace(CFG_OF_LINE, dtype="bf16", weights="bf16", lr=0.02)


@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path, child, step):
    fit(tmp_path / "whole", ROUNDED)
    killer = Line({step: lambda task, fit: os.kill(os.getpid(), signal.SIGKILL)})
    assert child(lambda: fit(tmp_path / "cut", ROUNDED, killer)) == -signal.SIGKILL
    fit(tmp_path / "cut", ROUNDED)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_it_learns_and_leaves_the_average(tmp_path):
    run = fit(tmp_path, replace(ROUNDED, steps=300, warmup=0, save_every=300, preview_every=0, log_every=100))
    layer = run.task.layer
    assert layer.weight.dtype == torch.bfloat16 and torch.equal(layer.weight.detach(), run.state.ema["weight"])
    assert layer.weight.item() == pytest.approx(3, abs=0.2) and layer.bias.item() == pytest.approx(-1, abs=0.2)
    saved = load_file(tmp_path / "checkpoint-300" / "optimizer.safetensors")
    assert saved["weight:exp_avg_sq"].dtype == torch.bfloat16


def test_a_step_that_is_not_finite_is_skipped(tmp_path):
    run = fit(tmp_path, ROUNDED, Line({2: lambda task, fit: fit * math.nan}))
    assert sum(row.get("skipped", 0) for row in rows(tmp_path)) == 1
    assert all(p.isfinite().all() for p in run.state.params.values())


def test_a_run_goes_on_in_the_other_precision(tmp_path):
    """Weights, average and moments are brought to it."""
    fit(tmp_path, replace(ROUNDED, weights="fp32", steps=3))
    run = fit(tmp_path, ROUNDED)
    assert run.state.step == 6 and all(p.dtype == torch.bfloat16 for p in run.state.params.values())
