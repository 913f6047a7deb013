"""The only training loop. It knows nothing of diffusion: a task gives named losses, the loop does the rest."""

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minisd.errors import INTERRUPTED, NUMERICAL, MinisdError
from minisd.train import optim, state
from minisd.train.config import TrainConfig
from minisd.train.data import Batch
from minisd.train.draws import Draws


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
    bad_steps: int = 0
    terms: dict[str, list[float]] = field(default_factory=dict)


def fit(run: Run) -> None:
    """Train to `cfg.steps`, saving, previewing and logging on the way; leaves the averaged weights in the module."""
    cfg, progress = run.cfg, tqdm(total=run.cfg.steps, initial=run.state.step, desc=run.folder.name, unit="step")
    with interrupts() as interrupted, ThreadPoolExecutor(1) as reader, progress:
        ahead = prefetched(run, reader)
        while run.state.step < cfg.steps:
            update(run, ahead)
            progress.update()
            look(run, progress)
            stop, step = interrupted.is_set(), run.state.step  # asked once: a signal from here on is the next step's
            if step % cfg.save_every == 0 or step == cfg.steps or stop:
                state.commit(run.folder, run.state, cfg.keep, {"seed": run.seed})
            if stop:
                raise MinisdError("interrupted", str(run.folder), f"a signal came; step {step} is saved",
                                  "go on with --resume auto", INTERRUPTED)
    with torch.no_grad():
        for name, p in run.state.params.items():
            p.copy_(run.state.ema[name])


def look(run: Run, progress: tqdm) -> None:
    """Write what is due at this step: the mean losses since the last row; sample pictures and their measures."""
    cfg, step = run.cfg, run.state.step
    if step % cfg.log_every == 0 or step == cfg.steps:
        log(run, {name: sum(v) / len(v) for name, v in run.terms.items()}, progress)
        run.terms.clear()
    if step % cfg.preview_every == 0 or step == cfg.steps:
        with averaged(run.state):
            log(run, run.task.preview(run.folder / "samples", step), progress)


def prefetched(run: Run, reader: ThreadPoolExecutor) -> Iterator[tuple[Batch, Draws]]:
    """Batches of the coming forward passes, one read ahead. Pass k of step s holds fixed sample numbers."""
    cfg = run.cfg

    def read(number: int) -> tuple[Batch, Draws]:
        numbers = list(range(number * cfg.batch, (number + 1) * cfg.batch))
        return run.batches(numbers), Draws(run.seed, numbers)

    number = run.state.step * cfg.accumulate
    pending = reader.submit(read, number)
    while True:
        number += 1
        ready, pending = pending, reader.submit(read, number)
        yield ready.result()


def update(run: Run, ahead: Iterator[tuple[Batch, Draws]]) -> None:
    """One optimiser update; a non-finite one is skipped and counted, and its weights are never kept."""
    cfg, current = run.cfg, run.state
    terms: dict[str, float] = {}
    for _ in range(cfg.accumulate):
        batch, draws = next(ahead)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cfg.dtype == "bf16"):
            losses = run.task.loss(batch, draws, current.step)
        (torch.stack(list(losses.values())).sum() / cfg.accumulate).backward()
        for name, value in losses.items():
            terms[name] = terms.get(name, 0.0) + value.item() / cfg.accumulate
    norm = torch.nn.utils.clip_grad_norm_(current.params.values(), cfg.clip).item()
    if math.isfinite(norm) and all(map(math.isfinite, terms.values())):
        run.bad_steps = 0
        for group in current.optimizer.param_groups:
            group["lr"] = optim.learning_rate(current.step, cfg)
        current.optimizer.step()
        optim.average(current.ema, current.params, optim.ema_decay(current.step, cfg))
        for name, number in (*terms.items(), ("gradient", norm)):
            run.terms.setdefault(name, []).append(number)
    else:
        run.bad_steps += 1
        run.terms.setdefault("skipped", []).append(1.0)
        if run.bad_steps >= cfg.max_bad_steps:
            raise MinisdError(f"{run.bad_steps} non-finite steps in a row", f"step {current.step}",
                              f"losses {terms}, gradient {norm}",
                              "lower the learning rate or use fp32; the last checkpoint is finite", NUMERICAL)
    current.optimizer.zero_grad()
    current.step += 1


def start(folder: Path, current: state.State, resume: str) -> list[str]:
    """Bring a state to where a run folder stands: `auto` takes the newest checkpoint that verifies or starts afresh."""
    folder.mkdir(parents=True, exist_ok=True)
    path, notes = state.newest(folder)
    if path is None and (resume != "auto" or notes):
        raise MinisdError("nothing to resume", str(folder), "; ".join(notes) or "no checkpoint",
                          "start with a new folder")
    if path is not None:
        current.restore(path, int(state.read_manifest(path)["step"]))  # type: ignore[call-overload]
        notes.append(f"resumed from {path.name}")
    trim(folder / "metrics.jsonl", current.step)
    return notes


def trim(metrics: Path, step: int) -> None:
    """Drop the rows that came after the resumed step, so that none is there twice."""
    if metrics.is_file():
        rows = [line for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in rows if json.loads(line)["step"] <= step]
        temporary = metrics.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, metrics)


def log(run: Run, values: dict[str, float], progress: tqdm) -> None:
    """One row of metrics.jsonl: step, samples seen, learning rate, and the values."""
    cfg, step = run.cfg, run.state.step
    row = {"step": step, "samples": step * cfg.batch * cfg.accumulate, "lr": optim.learning_rate(step - 1, cfg),
           **values}
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({name: round(v, 6) if name != "lr" else v for name, v in row.items()}) + "\n")
    progress.set_postfix({name: f"{v:.3g}" for name, v in values.items()})


@contextmanager
def averaged(current: state.State) -> Iterator[None]:
    """The averaged weights in the module's place, and the raw ones back afterwards."""
    raw = {name: p.detach().clone() for name, p in current.params.items()}
    with torch.no_grad():
        for name, p in current.params.items():
            p.copy_(current.ema[name])
        try:
            yield
        finally:
            for name, p in current.params.items():
                p.copy_(raw[name])


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Set by SIGTERM or SIGINT: the step in hand is finished and saved. A second signal ends at once."""
    event = threading.Event()

    def note(number: int, _: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
