"""Optimiser, learning rate and average."""

import math

import pytest
import torch
from torch import nn

from minisd.train import optim
from minisd.train.config import TrainConfig


@pytest.mark.parametrize("schedule, half", [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_rates_rise_and_fall_with_the_updates(schedule, half):
    cfg = TrainConfig(steps=1000, warmup=10, lr=2.0, schedule=schedule, accumulate=7)
    assert optim.learning_rate(0, cfg) == pytest.approx(0.2, rel=0.01)      # the first update moves already
    assert optim.learning_rate(4, cfg) == pytest.approx(1.0, rel=0.01)
    assert optim.learning_rate(9, cfg) == pytest.approx(2.0, rel=0.02)
    assert optim.learning_rate(500, cfg) == pytest.approx(2.0 * half)
    last = {"constant": 2.0, "linear": 2.0 / 1000, "cosine": 1 + math.cos(math.pi * 0.999)}[schedule]
    assert optim.learning_rate(999, cfg) == pytest.approx(last)


def test_no_warm_up_begins_at_the_full_rate():
    assert optim.learning_rate(0, TrainConfig(warmup=0, lr=0.5)) == 0.5


def test_vectors_are_not_decayed_and_half_precision_is_refused():
    params = dict(nn.Linear(2, 3).named_parameters())
    groups = optim.optimizer(params, TrainConfig(weight_decay=0.3)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.3), (1, 0.0)]
    with pytest.raises(ValueError, match="not fp32, the first bias"):
        optim.optimizer({"bias": nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))}, TrainConfig())


def test_the_average_is_the_closed_form():
    """After n updates at a constant decay: d^n w0 + (1 - d) sum of d^(n - i) w_i."""
    values, decay = [3.0, 1.0, 4.0, 1.0, 5.0], 0.9
    ema, p = {"w": torch.tensor([2.0])}, nn.Parameter(torch.zeros(1))
    for value in values:
        p.data.fill_(value)
        optim.average(ema, {"w": p}, decay)
    n = len(values)
    expected = decay ** n * 2.0 + (1 - decay) * sum(decay ** (n - i) * v for i, v in enumerate(values, start=1))
    assert ema["w"].item() == pytest.approx(expected, rel=1e-6)


def test_a_young_average_is_short():
    cfg = TrainConfig(ema=0.999)
    assert optim.ema_decay(0, cfg) == 0.1 and optim.ema_decay(90, cfg) == 0.91
    assert optim.ema_decay(10 ** 6, cfg) == 0.999


def test_parameters_with_rates_of_their_own():
    params = {name: nn.Parameter(torch.ones(2, 2)) for name in ("a", "b", "c")}
    groups = optim.optimizer(params, TrainConfig(), {"b": 0.2, "c": 0.2}).param_groups
    assert [(len(group["params"]), group[optim.TIMES]) for group in groups] == [(1, 1.0), (0, 1.0), (2, 0.2)]
