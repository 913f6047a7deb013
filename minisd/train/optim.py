"""The optimiser, its learning rate, and the exponential moving average of the weights."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from minisd.train import rounding
from minisd.train.config import TrainConfig

TIMES = "times"                                   # of a group: its rate as a multiple of the learning rate
NOTHING: Mapping[str, float] = MappingProxyType({})
WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def optimizer(params: dict[str, nn.Parameter], cfg: TrainConfig, rates: Mapping[str, float] = NOTHING,
              seed: int = 0) -> torch.optim.Optimizer:
    """AdamW, fused; vectors (biases, norms) are not decayed. Trained parameters must be of the config's precision.

    `rates` are those that learn at so many times the rate, by name; `seed` is for the rounding of bfloat16 weights.
    """
    wrong = [name for name, p in params.items() if p.dtype != WEIGHTS[cfg.weights]]
    if wrong:
        raise ValueError(f"{len(wrong)} trained parameters are not {cfg.weights}, the first {wrong[0]}")
    kinds: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, p in params.items():
        kinds.setdefault((rates.get(name, 1.0), p.ndim > 1), []).append(p)
    groups = [{"params": members, "weight_decay": cfg.weight_decay if decayed else 0.0, TIMES: rate}
              for (rate, decayed), members in kinds.items()]
    if cfg.weights == "bf16":
        return rounding.RoundedAdamW(groups, cfg.lr, cfg.betas, seed)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)


def learning_rate(step: int, cfg: TrainConfig) -> float:
    """The rate of update `step`, counted from 0; one update is one step however many batches it accumulates."""
    warm = min(1.0, (step + 1) / max(cfg.warmup, 1))
    done = step / max(cfg.steps, 1)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[cfg.schedule]
    return cfg.lr * warm * fall


def ema_decay(step: int, cfg: TrainConfig) -> float:
    """The average starts from the first weights and is short while young: (1 + n) / (10 + n), at most `ema`."""
    return min(cfg.ema, (1 + step) / (10 + step))


def average(ema: dict[str, Tensor], params: dict[str, nn.Parameter], decay: float) -> None:
    """Move the averaged weights towards the current ones, in place; float32, for bfloat16 see `rounding.average`."""
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.values()), [params[name].detach() for name in ema], 1 - decay)
