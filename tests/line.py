"""A training task that fits a line: all of the loop and none of the networks."""

import json
from dataclasses import dataclass, field

from torch import nn

from minisd.train import loop, resume, state
from minisd.train.config import TrainConfig
from minisd.train.data import Batch
from minisd.train.replicated import Replicated

CFG = TrainConfig(steps=6, batch=4, lr=0.05, warmup=2, dtype="fp32", save_every=2, preview_every=3, log_every=1,
                  ema=0.9)


@dataclass
class Line:
    """y = 3 x - 1 plus noise, to be found by a linear layer; `events` are called at their steps."""

    events: dict = field(default_factory=dict)
    layer: nn.Linear = field(default_factory=lambda: nn.Linear(1, 1))
    seen: list = field(default_factory=list)

    def __post_init__(self):
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def trained(self):
        return self.layer

    def loss(self, batch, draws, step):
        self.seen.append((step, batch.rows))
        x = draws.normal(1)
        fit = (self.layer(x) - (3 * x - 1) - 0.1 * draws.normal(1)).square().mean()
        event = self.events.get(step, lambda task, fit: fit)
        return {"fit": event(self, fit), "small": 0.01 * self.layer.weight.square().sum()}

    def preview(self, folder, step):
        if "preview" in self.events:
            self.events["preview"](self)
        return {"weight": self.layer.weight.item()}

    def export(self, folder):
        pass


def prepared(folder, cfg, task, settings, holding=Replicated):
    task = task or Line()
    fresh = state.State.new(task.trained(), cfg, holding=holding)
    return loop.Run(folder, task, lambda numbers: Batch(numbers, []), cfg, 7, fresh, settings)


def start(folder, cfg=CFG, task=None, how="auto", **settings):
    """A run that stands where its folder stands."""
    run = prepared(folder, cfg, task, settings)
    resume.resume(run, how)
    return run


def fit(folder, cfg=CFG, task=None, how="auto", **settings):
    run = start(folder, cfg, task, how, **settings)
    loop.fit(run)
    return run


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saved(folder, step=CFG.steps):
    return {path.name: path.read_bytes() for path in (folder / f"checkpoint-{step}").glob("*.safetensors")}


def same(a, b):
    return saved(a) == saved(b) and (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
