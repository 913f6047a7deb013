"""All that must survive a restart, and its commit by rename: a checkpoint is either whole and verified or not there.

A checkpoint folder `checkpoint-N/` holds params, ema and optimizer as safetensors and manifest.json with their sizes
and sha256. It is written under a temporary name, synced, renamed, and only then are older ones removed.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minisd.errors import RESOURCE, MinisdError
from minisd.train import optim
from minisd.train.config import TrainConfig


@dataclass
class State:
    """Weights, their average, the optimiser and the number of updates made. Random numbers follow from the step."""

    params: dict[str, nn.Parameter]
    ema: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    step: int = 0

    @classmethod
    def new(cls, module: nn.Module, cfg: TrainConfig) -> "State":
        params = {name: p for name, p in module.named_parameters() if p.requires_grad}
        ema = {name: p.detach().clone() for name, p in params.items()}
        return cls(params, ema, optim.optimizer(params, cfg))

    def save(self, folder: Path) -> None:
        moments = {}
        for name, p in self.params.items():
            for key, value in self.optimizer.state[p].items():
                moments[f"{name}:{key}"] = value.detach().reshape(-1) if value.ndim == 0 else value.detach()
        parts = {"params": {name: p.detach() for name, p in self.params.items()}, "ema": self.ema, "optimizer": moments}
        for part, tensors in parts.items():
            save_file({name: t.contiguous() for name, t in tensors.items()}, folder / f"{part}.safetensors")

    def restore(self, folder: Path, step: int) -> None:
        params, ema = load_file(folder / "params.safetensors"), load_file(folder / "ema.safetensors")
        if params.keys() != self.params.keys():
            raise MinisdError("the checkpoint belongs to another model", str(folder),
                              f"{len(params.keys() ^ self.params.keys())} parameters differ", "use another run folder")
        moments = load_file(folder / "optimizer.safetensors")
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(params[name])
                self.ema[name].copy_(ema[name])
                slots = self.optimizer.state[p] = {"step": moments[f"{name}:step"].reshape(())}
                for key in ("exp_avg", "exp_avg_sq"):  # in the parameter's own memory format
                    slots[key] = torch.empty_like(p).copy_(moments[f"{name}:{key}"].reshape(p.shape))
        self.step = step


def commit(run: Path, state: State, keep: int, note: dict[str, object]) -> Path:
    """Write `checkpoint-N` so that at every moment the newest verified one is loadable; then drop the oldest."""
    target = run / f"checkpoint-{state.step}"
    temporary = run / f".tmp-checkpoint-{state.step}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        state.save(temporary)
        files = {path.name: {"size": path.stat().st_size, "sha256": digest(path)}
                 for path in sorted(temporary.iterdir())}
        manifest = {"step": state.step, "files": files, "torch": torch.__version__, **note}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        shutil.rmtree(target, ignore_errors=True)  # there only when it did not verify, or on a rerun of the same step
        temporary.rename(target)
        sync(run)
    except OSError as fault:
        shutil.rmtree(temporary, ignore_errors=True)
        raise MinisdError("cannot save a checkpoint", str(target), fault.strerror or str(fault),
                          "free space and resume; the checkpoints before it are whole", RESOURCE) from fault
    for old in checkpoints(run)[keep:]:
        shutil.rmtree(old)
    return target


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones were skipped."""
    skipped: list[str] = []
    for path in checkpoints(run):
        fault = verify(path)
        if fault is None:
            return path, skipped
        skipped.append(f"{path.name}: {fault}")
    return None, skipped


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = read_manifest(path)["files"]
        for name, facts in files.items():
            if (path / name).stat().st_size != facts["size"]:
                return f"{name} has {(path / name).stat().st_size} bytes, the manifest says {facts['size']}"
            if digest(path / name) != facts["sha256"]:
                return f"{name} is not what was written (sha256)"
    except (OSError, ValueError, KeyError, TypeError) as fault:
        return f"no readable manifest or file: {fault}"
    return None


def read_manifest(path: Path) -> dict[str, dict]:
    return json.loads((path / "manifest.json").read_text(encoding="utf-8"))


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
