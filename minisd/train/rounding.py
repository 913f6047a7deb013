"""AdamW without a float32 copy of the weights: they, both moments and their average are bfloat16, which has eight bits
of precision. An update smaller than half a step of it would never be made by the nearest rounding; stochastic rounding
makes it as often as its size says, and so in the mean exactly (Gupta et al., arXiv 1502.02551, section 3.1).

A piece at a time is computed in float32, so that no float32 copy of the whole model ever exists.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from minisd.train.draws import Purpose, stream

PIECE = {"cpu": 1 << 18, "cuda": 1 << 22}         # numbers at a time: what the caches hold; few launches
TAPE = 8                                          # pieces that random bits are drawn for, at most
MOMENTS = ("exp_avg", "exp_avg_sq")
LOW = 16                                          # bits of a float32 that a bfloat16 lacks


class Made(IntEnum):
    """What is rounded at an update, each with random bits of its own."""

    WEIGHTS = 0
    AVERAGE = 1


class Noise:
    """Sixteen random bits for every number that is rounded.

    They follow from seed and update alone, so every rank has the same, and so has a run that was killed and resumed.
    Each piece reads them from a place of its own on one long tape: what it reads is independent number by number, and
    two pieces that overlap there do so at other numbers.
    """

    def __init__(self, seed: int, update: int, made: Made, count: int, device: torch.device):
        """For so many numbers in all."""
        self.places = stream(seed, len(Made) * update + made, Purpose.ROUNDING)
        generator = torch.Generator(device).manual_seed(int(self.places.integers(1 << 63)))
        self.tape = torch.empty(min(2 * count, TAPE * PIECE[device.type]), dtype=torch.int32, device=device)
        self.tape.random_(0, 1 << LOW, generator=generator)

    def bits(self, count: int) -> Tensor:
        """So many numbers from 0 to 2^16 - 1: int32 [count]."""
        place = int(self.places.integers(len(self.tape) - count + 1))
        return self.tape[place:place + count]


def round_stochastically(x: Tensor, noise: Tensor) -> None:
    """Contiguous float32 to one of the two bfloat16 values around it, in place: the nearer it is, the likelier.

    A value's bits are a count of the float32 values below it: what is added carries into the bits that stay as often
    as those that go are a part of a step. x is [...] of any shape, noise as many numbers of `Noise`.
    """
    bits = x.view(torch.int32)
    bits.add_(noise.view_as(bits)).bitwise_and_(-1 << LOW)


class RoundedAdamW(torch.optim.Optimizer):
    """PyTorch's AdamW of bfloat16 parameters, computed in float32 and rounded stochastically."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], seed: int):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; its random bits are told by the number of updates made before it."""
        learning = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not learning:
            return
        made = max((int(slots["step"]) for slots in self.state.values()), default=0)
        count, device = sum(p.numel() for p, _ in learning), learning[0][0].device
        noise = Noise(self.seed, made, Made.WEIGHTS, 3 * count, device)
        jobs: list[Job] = []
        for p, group in learning:
            slots = self.slots(p)
            work = partial(update, step=slots["step"], group=group)
            for piece in pieces((p, *(slots[name] for name in MOMENTS)), p.grad, PIECE[device.type]):
                jobs.append(Job(piece, noise.bits(3 * len(piece[0])), work))
        done(jobs, device)
        for p, _ in learning:
            self.state[p]["step"] += 1

    def slots(self, p: nn.Parameter) -> dict[str, Tensor]:
        """A parameter's moments, and how many updates they have seen."""
        if p not in self.state:
            self.state[p] = {"step": torch.tensor(0.0)} | {name: torch.zeros_like(p) for name in MOMENTS}
        return self.state[p]


class Job(NamedTuple):
    """A piece of tensors [n] each, the noise for those of them that are written back, and what is done in float32."""

    piece: Sequence[Tensor]
    noise: Tensor
    work: Callable[[Tensor], None]                # on rows [k, n] of the piece


def done(jobs: Sequence[Job], device: torch.device) -> None:
    """Do all jobs: on a CPU, as many at a time as there are threads, since one job is too small to be shared."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1 or len(jobs) < 2 * threads:
        do(jobs)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        shares = [pool.submit(do, jobs[first::threads]) for first in range(threads)]
    torch.set_num_threads(threads)                # for threads that begin later; this one's number has not changed
    for share in shares:
        share.result()


@torch.no_grad()
def do(jobs: Sequence[Job]) -> None:
    """One after the other, in one place that stays in the cache."""
    room = torch.empty(max((len(job.piece) * len(job.piece[0]) for job in jobs), default=0),
                       device=jobs[0].noise.device if jobs else None)
    for piece, noise, work in jobs:
        rows = room[:len(piece) * len(piece[0])].view(len(piece), -1)
        for row, narrow in zip(rows, piece, strict=True):
            row.copy_(narrow)
        work(rows)
        written = len(noise) // len(piece[0])
        round_stochastically(rows[:written], noise)
        for row, narrow in zip(rows[:written], piece[:written], strict=True):
            narrow.copy_(row)


def update(rows: Tensor, step: Tensor, group: Mapping[str, Any]) -> None:
    """AdamW of rows [4, n]: weights, both moments and gradient; `step` updates were made before."""
    weights, first, second, grad = ([row] for row in rows)
    adamw(weights, grad, first, second, [], [step.clone()], fused=step.device == rows.device, amsgrad=False,
          beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
          eps=group["eps"], maximize=False)


def average(ema: Mapping[str, Tensor], params: Mapping[str, nn.Parameter], decay: float, seed: int, step: int) -> None:
    """Move bfloat16 averages towards the weights, in place. By the nearest rounding an average at a decay of 0.999
    would stand still: only a difference of a hundred steps of bfloat16 or more would move it."""
    count, device = sum(mean.numel() for mean in ema.values()), next(iter(ema.values())).device
    noise = Noise(seed, step, Made.AVERAGE, count, device)

    def nearer(rows: Tensor) -> None:             # [2, n]: averages and weights
        rows[0].lerp_(rows[1], 1 - decay)

    done([Job(piece, noise.bits(len(piece[0])), nearer) for name, mean in ema.items()
          for piece in pieces((mean,), params[name].detach(), PIECE[device.type])], device)


def pieces(kept: Sequence[Tensor], read: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape as runs of at most so many numbers, in the order in which the kept ones lie in memory.

    Runs of those are views, to be written to; what is only read may lie otherwise and is copied then. Of a tensor whose
    rows other ranks hold there is none.
    """
    if not read.numel():
        return iter(())
    order = sorted(range(read.ndim), key=kept[0].stride, reverse=True)
    flat = [*(one.permute(order).view(-1) for one in kept), read.permute(order).reshape(-1)]
    return zip(*(one.split(size) for one in flat), strict=True)
