"""The optimiser, its learning rate, and the exponential moving average of the weights."""

import math

import torch
from torch import Tensor, nn

from minisd.train.config import TrainConfig


def optimizer(params: dict[str, nn.Parameter], cfg: TrainConfig) -> torch.optim.AdamW:
    """AdamW, fused; vectors (biases, norms) are not decayed. Trained parameters must be float32."""
    wrong = [name for name, p in params.items() if p.dtype != torch.float32]
    if wrong:
        raise ValueError(f"{len(wrong)} trained parameters are not float32, the first {wrong[0]}")
    groups = [{"params": [p for p in params.values() if p.ndim > 1], "weight_decay": cfg.weight_decay},
              {"params": [p for p in params.values() if p.ndim <= 1], "weight_decay": 0.0}]
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
    """Move the averaged weights towards the current ones, in place."""
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.values()), [params[name].detach() for name in ema], 1 - decay)
