"""The only training loop. It knows nothing of diffusion: a task gives named losses, the loop does the rest."""

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minisd import heap
from minisd.errors import INTERRUPTED, NUMERICAL, RESOURCE, MinisdError
from minisd.train import gradients, optim, rounding, state
from minisd.train.board import Board
from minisd.train.config import TrainConfig
from minisd.train.data import Batch
from minisd.train.draws import Draws
from minisd.train.interrupts import interrupts
from minisd.train.ranks import Ranks, told
from minisd.train.report import write_report

log = logging.getLogger(__name__)

METRICS, SAMPLES = "metrics.jsonl", "samples"


class Task(Protocol):
    """What is trained, and how well it does."""

    def trained(self) -> nn.Module:
        """What is optimised, averaged and saved: its parameters that require gradients."""

    def loss(self, batch: Batch, draws: Draws, step: int) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; their sum is minimised."""

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """Draw sample pictures into the folder and return measures, with the averaged weights in place."""

    def export(self, folder: Path) -> None:
        """Write what a user takes home into a model folder, with the averaged weights in place."""


@dataclass
class Run:
    """One stage on its way: where it writes, what it reads, how it goes."""

    folder: Path
    task: Task
    batches: Callable[[list[int]], Batch]
    cfg: TrainConfig
    seed: int
    state: state.State
    settings: Mapping[str, Any] = field(default_factory=dict)  # all that a run resumed from its checkpoints must share
    bad_steps: int = 0                            # skipped ones in a row
    usual: float = 0.0                            # norm of the gradient, lately
    unlogged: dict[str, list[float]] = field(default_factory=dict)  # terms of the steps since the last row
    board: Board | None = field(init=False)       # where TensorBoard is asked for

    def __post_init__(self) -> None:
        self.board = Board(self.folder) if self.cfg.tensorboard and self.ranks.first else None

    def note(self) -> dict[str, Any]:
        """What a checkpoint records beside the state."""
        return {"seed": self.seed, "settings": self.settings, "bad_steps": self.bad_steps, "usual": self.usual,
                "unlogged": self.unlogged}

    @property
    def ranks(self) -> Ranks:
        """The processes that share each step's passes."""
        return self.state.held.ranks

    @property
    def device(self) -> torch.device:
        return next(iter(self.state.params.values())).device

    @property
    def passes(self) -> int:
        """Passes of a step, over all ranks."""
        return self.cfg.accumulate * self.ranks.count


def fit(run: Run) -> None:
    """Train to `cfg.steps`, logging, previewing and saving on the way; leaves the averaged weights in the module.

    Rows are written before the checkpoint of their step, and those of later steps are dropped on resuming:
    so each is there once, whenever the run was killed.
    """
    cfg = run.cfg
    with interrupts() as interrupted, reading_thread() as reader, bar(run) as progress, told(asking=False):
        if cfg.weights == "bf16" and run.device.type == "cpu":
            heap.hold()
        ahead = prefetched(run, reader)
        while run.state.step < cfg.steps:
            update(run, ahead)
            progress.update()
            stop = run.ranks.any(interrupted.is_set())  # asked once: a signal from here on belongs to the next step
            report(run, progress, preview=not stop)
            if due(run, cfg.save_every) or stop:
                save(run)
            if stop:
                raise MinisdError("interrupted", str(run.folder), f"a signal came; step {run.state.step} is saved",
                                  "go on with --resume auto", INTERRUPTED)
    with torch.no_grad():
        for name, p in run.state.params.items():
            p.copy_(run.state.ema[name])


def reading_thread() -> ThreadPoolExecutor:
    """One thread that reads ahead, computing on as many threads as this one from its first operation on.

    By itself a new thread has OpenMP's own number until some operation of PyTorch's sets it right: what is encoded
    first would be rounded otherwise than what comes later, and a resumed run begins with another picture.
    """
    return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))


def due(run: Run, every: int) -> bool:
    """Whether something with this period falls on the present step; all fall on the last. 0 = on that only."""
    return run.state.step == run.cfg.steps or (every > 0 and run.state.step % every == 0)


def prefetched(run: Run, reader: ThreadPoolExecutor) -> Iterator[tuple[Batch, Draws]]:
    """Batches of the coming forward passes, one read ahead. Pass k of step s holds fixed sample numbers."""
    cfg = run.cfg

    def read(number: int) -> tuple[Batch, Draws]:
        numbers = list(range(number * cfg.batch, (number + 1) * cfg.batch))
        return run.batches(numbers), Draws(run.seed, numbers, run.device)

    number = run.state.step * run.passes + run.ranks.rank
    pending = reader.submit(read, number)
    while True:
        number += run.ranks.count
        ready, pending = pending, reader.submit(read, number)
        yield ready.result()


def update(run: Run, ahead: Iterator[tuple[Batch, Draws]]) -> None:
    """One optimiser update; one that is not finite, or a spike, is skipped and counted, and its weights never kept."""
    cfg, current = run.cfg, run.state
    terms: dict[str, float] = {}
    for number in range(cfg.accumulate):
        batch, draws = next(ahead)
        with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=cfg.dtype == "bf16"):
            losses = run.task.loss(batch, draws, current.step)
        if number == cfg.accumulate - 1 and cfg.shares_every and (current.step + 1) % cfg.shares_every == 0:
            shares = current.held.shares(losses)
            terms |= {name: share / run.ranks.count for name, share in shares.items()}
        (torch.stack(list(losses.values())).sum() / run.passes).backward()
        for name, loss in losses.items():
            terms[name] = terms.get(name, 0.0) + loss.item() / run.passes
    if cfg.weights == "bf16" and run.device.type == "cpu":  # for those whose memory is short
        heap.trim()
    current.held.collect()
    terms = run.ranks.total(terms)
    norm = current.held.norm()
    gradients.clip(list(current.params.values()), cfg.clip, norm)
    terms["gradient"] = norm.item()
    if not all(map(math.isfinite, terms.values())):
        skip(run, terms, "it is not finite")
    elif gradients.is_spike(terms["gradient"], run.usual, current.step, cfg.spike):
        skip(run, terms, f"the gradient is usually {run.usual:.3g}")
    else:
        keep(run, terms)
    current.optimizer.zero_grad()
    current.step += 1


def keep(run: Run, terms: Mapping[str, float]) -> None:
    """Step the optimiser and the average, and note the terms."""
    cfg, current = run.cfg, run.state
    for group in current.optimizer.param_groups:
        group["lr"] = group[optim.TIMES] * optim.learning_rate(current.step, cfg)
    current.optimizer.step()
    decay = optim.ema_decay(current.step, cfg)
    if cfg.weights == "bf16":
        rounding.average(current.ema, current.params, decay, current.held.seed(run.seed), current.step)
    else:
        optim.average(current.ema, current.params, decay)
    run.bad_steps = 0
    run.usual = gradients.usual_norm(terms["gradient"], run.usual, current.step)
    for name, value in terms.items():
        run.unlogged.setdefault(name, []).append(value)


def skip(run: Run, terms: Mapping[str, float], why: str) -> None:
    """Count a step that is not made, and give up after too many in a row."""
    run.bad_steps += 1
    run.unlogged.setdefault("skipped", []).append(1.0)
    log.warning("step %d is skipped, %s: %s", run.state.step + 1, why, terms)
    if run.bad_steps >= run.cfg.max_bad_steps:
        raise MinisdError(f"{run.bad_steps} skipped steps in a row", f"step {run.state.step + 1}",
                          f"{why}: {dict(terms)}",
                          "lower the learning rate or use fp32; the last checkpoint is finite", NUMERICAL)


def save(run: Run) -> None:
    """Commit a checkpoint: the first rank writes it, with what the others hold."""
    if run.ranks.first:
        state.commit(run.folder, run.state, run.cfg.keep, run.note())
    else:
        run.state.lend()


def report(run: Run, progress: tqdm, preview: bool) -> None:
    """Write what is due at this step: the means since the last row; sample pictures and their measures."""
    if due(run, run.cfg.log_every):
        counted = {"skipped": float(len(run.unlogged.pop("skipped", [])))}
        means = {name: sum(values) / len(values) for name, values in run.unlogged.items()}
        record(run, means | {name: n for name, n in counted.items() if n}, progress)
        run.unlogged.clear()
    if preview and due(run, run.cfg.preview_every):
        show(run, progress)


def show(run: Run, progress: tqdm | None = None) -> None:
    """Sample pictures and measures of the averaged weights, and the report that shows them: by the first rank."""
    with run.state.held.showing(run.state.ema):
        if run.ranks.first:
            look(run, progress)


def look(run: Run, progress: tqdm | None) -> None:
    """Draw and measure; pictures to look at must not end a run of hours."""
    try:
        record(run, run.task.preview(run.folder / SAMPLES, run.state.step), progress)
        write_report(run.folder)
    except Exception as fault:
        log.warning("no preview at step %d: %s", run.state.step, fault, exc_info=log.isEnabledFor(logging.DEBUG))


def record(run: Run, values: Mapping[str, float], progress: tqdm | None = None) -> None:
    """One row of metrics.jsonl, by the first rank: step, samples seen, learning rate, and the values, to six digits."""
    if not run.ranks.first:
        return
    cfg, step = run.cfg, run.state.step
    rates = {"lr": optim.learning_rate(step - 1, cfg)}
    rounded = {name: float(f"{value:.6g}") for name, value in (rates | dict(values)).items()}
    row = json.dumps({"step": step, "samples": step * cfg.batch * run.passes, **rounded})
    try:
        with (run.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(row + "\n")
    except OSError as fault:
        raise MinisdError("cannot write the metrics", str(run.folder / METRICS), fault.strerror or str(fault),
                          "free space and resume", RESOURCE) from fault
    if run.board is not None:
        run.board.add(step, rounded)
    if progress is not None:
        progress.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=sys.stderr.isatty())


def bar(run: Run) -> tqdm:
    """A progress bar; in a log file it moves twice a minute."""
    return tqdm(total=run.cfg.steps, initial=run.state.step, desc=run.folder.name, unit="step",
                mininterval=0.5 if sys.stderr.isatty() else 30.0, disable=not run.ranks.first)
