"""All that must survive a restart, and its commit by rename: a checkpoint is either whole and verified or not there.

A checkpoint folder `checkpoint-N/` holds params, ema and optimizer as safetensors and manifest.json with their sizes
and sha256. It is written under a temporary name, synced, renamed, and only then are older ones removed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.errors import NUMERICAL, RESOURCE, USAGE, MinisdError
from minisd.files import sync
from minisd.train import optim
from minisd.train.config import TrainConfig
from minisd.train.recompute import lighten
from minisd.train.replicated import Replicated
from minisd.train.rounding import MOMENTS

PREFIX, HIDDEN, MANIFEST = "checkpoint-", ".tmp-", "manifest.json"
COUNT = "step"                                    # of an optimiser's updates, beside the moments
COPIES = 4                                        # of a parameter: itself, its average and two moments


@dataclass
class State:
    """Weights, their average, the optimiser and the number of updates made. Random numbers follow from the step.

    Of several ranks each has what it holds; what a checkpoint holds is always whole.
    """

    held: Replicated
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def new(cls, module: nn.Module, cfg: TrainConfig, rates: Mapping[str, float] = optim.NOTHING, seed: int = 0,
            holding: Callable[[nn.Module], Replicated] = Replicated) -> "State":
        """The beginning: what learns in a module is brought to the precision that weights are trained in, and to
        where it is held; its blocks become such as the config asks for."""
        if cfg.recompute:
            lighten(module)
        for p in module.parameters():
            if p.requires_grad:
                p.data = p.data.to(optim.WEIGHTS[cfg.weights])
        held = holding(module)
        ema = {name: p.detach().clone() for name, p in held.params.items()}
        return cls(held, ema, optim.optimizer(held.params, cfg, rates, held.seed(seed)))

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """What this rank holds of the weights."""
        return self.held.params

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint's files hold; a parameter that had no gradient yet has no moments."""
        moments = {f"{name}:{key}": value.detach().reshape(-1) if value.ndim == 0 else value.detach()
                   for name, p in self.params.items() for key, value in self.optimizer.state[p].items()}
        return {"params": {name: p.detach() for name, p in self.params.items()}, "ema": self.ema, "optimizer": moments}

    def gathered(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """A checkpoint's files, one after the other, whole on the first rank, in the memory of its CPU. All ranks go
        through them together, tensor by tensor."""
        for part, tensors in self.tensors().items():
            files = {}
            for key, tensor in tensors.items():
                name, _, moment = key.partition(":")
                whole = tensor if moment == COUNT else self.held.whole(name, tensor)
                if self.held.ranks.first:
                    files[key] = whole.cpu()
            yield part, files

    def save(self, folder: Path) -> None:
        """Write the files, unless a number in them is not finite. Other ranks `lend` theirs meanwhile."""
        for part, tensors in self.gathered():
            bad = [name for name, t in tensors.items() if not t.isfinite().all()]
            if bad:
                raise MinisdError(f"{part} of step {self.step} are not finite, so it is not saved", bad[0],
                                  f"{len(bad)} of {len(tensors)} tensors hold NaN or infinity",
                                  "lower the learning rate or use fp32, and go on from the last checkpoint", NUMERICAL)
            save_file({name: t.contiguous() for name, t in tensors.items()}, folder / f"{part}.safetensors")

    def lend(self) -> None:
        """What another rank than the first does while that one saves."""
        for _ in self.gathered():
            pass

    def restore(self, folder: Path) -> None:
        """Take over a checkpoint that has been verified: what this rank holds of it."""
        with ExitStack() as stack, torch.no_grad():
            params, ema, moments = (stack.enter_context(safe_open(folder / f"{part}.safetensors", "pt"))
                                    for part in ("params", "ema", "optimizer"))
            there = {name: torch.Size(params.get_slice(name).get_shape()) for name in sorted(params.keys())}
            self.check_shapes(there, folder)
            fused = isinstance(self.optimizer, torch.optim.AdamW)   # its counts lie beside the weights, others' do not
            counted = set(moments.keys())
            for name, p in self.params.items():
                p.copy_(self.held.part(name, params, name))
                self.ema[name].copy_(self.held.part(name, ema, name))
                if f"{name}:{COUNT}" in counted:
                    count = moments.get_tensor(f"{name}:{COUNT}").reshape(()).clone()
                    self.optimizer.state[p] = {COUNT: count.to(p.device if fused else "cpu")} | {
                        key: torch.empty_like(p).copy_(self.held.part(name, moments, f"{name}:{key}"))
                        for key in MOMENTS}
        self.step = int(read_manifest(folder)["step"])

    def check_shapes(self, there: Mapping[str, torch.Size], folder: Path) -> None:
        """A checkpoint must be of this very model."""
        if there != self.held.shapes:
            differing = {name for name, _ in set(there.items()) ^ set(self.held.shapes.items())}
            raise MinisdError("the checkpoint belongs to another model", str(folder),
                              f"{len(differing)} parameters differ, the first {min(differing)}",
                              "use another run folder", USAGE)


def commit(run: Path, state: State, keep: int, note: Mapping[str, Any]) -> Path:
    """Write `checkpoint-N` so that at every moment the newest verified one is loadable; then drop the oldest."""
    target, temporary = run / f"{PREFIX}{state.step}", run / f"{HIDDEN}{PREFIX}{state.step}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        state.save(temporary)
        files = {path.name: {"size": path.stat().st_size, "sha256": digest(path)}
                 for path in sorted(temporary.iterdir())}
        manifest = {"step": state.step, "files": files, "torch": torch.__version__, **note}
        manifest["seal"] = seal(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        drop(target)                              # there only if it did not verify when the run was resumed
        temporary.rename(target)
        sync(run)
        for old in [path for path in checkpoints(run) if number(path) <= state.step][keep:]:
            drop(old)
    except (OSError, SafetensorError) as fault:
        raise MinisdError("cannot save a checkpoint", str(target), str(fault),
                          "free space and resume; the checkpoints before it are whole", RESOURCE) from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def drop(checkpoint: Path) -> None:
    """Remove a checkpoint that may be there; renamed first, so that half of one is never taken for a whole."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f"{HIDDEN}{checkpoint.name}-old")
        shutil.rmtree(doomed, ignore_errors=True)
        checkpoint.rename(doomed)
        shutil.rmtree(doomed)


def sweep(run: Path) -> None:
    """Remove what killed saves have left."""
    for path in run.glob(f"{HIDDEN}{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def check_space(run: Path, state: State, keep: int) -> None:
    """There must be room for the checkpoints to be kept and the one being written, beside those that are there."""
    size = COPIES * sum(state.held.shapes[name].numel() * p.element_size() for name, p in state.params.items())
    needed = (keep + 1 - len(checkpoints(run))) * size
    free = shutil.disk_usage(run).free
    if needed > free:
        raise MinisdError("too little disk space for the checkpoints", str(run),
                          f"{keep} of {size / 1e6:,.0f} MB and one being written need {needed / 1e6:,.0f} MB more, "
                          f"{free / 1e6:,.0f} MB are free",
                          "free space, or keep fewer", RESOURCE)


def newest(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that verifies, and what is wrong with newer ones."""
    skipped: dict[Path, str] = {}
    for path in checkpoints(run):
        fault = verify(path)
        if fault is None:
            return path, skipped
        skipped[path] = fault
    return None, skipped


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = read_manifest(path)
        if manifest["step"] != number(path) or manifest.get("seal", seal(manifest)) != seal(manifest):
            return f"{MANIFEST} is not what was written"
        for name, facts in manifest["files"].items():
            if (path / name).stat().st_size != facts["size"]:
                return f"{name} has {(path / name).stat().st_size} bytes, the manifest says {facts['size']}"
            if digest(path / name) != facts["sha256"]:
                return f"{name} is not what was written (sha256)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        return f"no readable manifest or file: {fault}"
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / MANIFEST).read_text(encoding="utf-8"))


def seal(manifest: Mapping[str, Any]) -> str:
    """sha256 of all else that a manifest says."""
    text = json.dumps({key: value for key, value in manifest.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    found = [path for path in run.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=number, reverse=True)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
