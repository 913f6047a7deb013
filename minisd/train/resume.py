"""Where a run goes on: which checkpoint it takes, what must not have changed since, and what a kill has left behind."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minisd.errors import USAGE, MinisdError
from minisd.files import put
from minisd.train import state
from minisd.train.loop import METRICS, Run

FREE = "train."                                   # settings of the loop, which may change between two sessions


def resume(run: Run, how: str) -> list[str]:
    """Bring a run to where its folder stands, and say in a few notes what was found.

    `auto` and `latest` take the newest checkpoint that verifies, `never` refuses where there is one; else `how` is a
    checkpoint's folder, which is taken even if the settings have changed. Of several ranks the first decides.
    """
    if not run.ranks.first:
        go_on(run, run.ranks.from_first(""))
        return []
    run.folder.mkdir(parents=True, exist_ok=True)
    state.sweep(run.folder)
    path, notes = find(run.folder, how)
    if path is not None:
        notes += compare(state.read_manifest(path).get("settings", {}), run.settings, path, how)
    go_on(run, run.ranks.from_first(str(path or "")))
    notes.append(f"goes on from {path.name}" if path else "starts")
    trim(run.folder / METRICS, run.state.step)
    state.check_space(run.folder, run.state, run.cfg.keep)
    return notes


def go_on(run: Run, path: str) -> None:
    """Take over a checkpoint that was found fit, if there is one."""
    if path:
        manifest = state.read_manifest(Path(path))
        run.state.restore(Path(path))
        run.bad_steps, run.unlogged = manifest.get("bad_steps", 0), manifest.get("unlogged", {})
        run.usual = manifest.get("usual", 0.0)


def find(folder: Path, how: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what was skipped on the way; skipped ones are set aside under other names."""
    there = state.checkpoints(folder)
    if how == "never" and there:
        raise MinisdError("the run folder holds checkpoints", str(folder), "--resume never was given",
                          "name a new --out, or --resume auto", USAGE)
    if how not in ("auto", "latest", "never"):
        return named(folder, Path(how)), []
    path, skipped = state.newest(folder)
    if path is None and there:
        raise MinisdError("no checkpoint can be read", str(folder),
                          "; ".join(f"{bad.name}: {why}" for bad, why in list(skipped.items())[:3]),
                          "start anew in another folder")
    for bad in skipped:
        bad.rename(bad.with_name(f"unreadable-{bad.name}"))
    return path, [f"{bad.name} is set aside: {why}" for bad, why in skipped.items()]


def named(folder: Path, path: Path) -> Path:
    """A checkpoint that the user has named: this folder's newest, or another folder's that is ahead of this one's."""
    if not path.is_dir() or path.resolve() not in [one.resolve() for one in state.checkpoints(path.parent)]:
        raise MinisdError("no such checkpoint", str(path), "it is not a folder named checkpoint-N",
                          "give auto, latest, never, or a checkpoint's folder")
    newer = [one for one in state.checkpoints(folder) if one.resolve() != path.resolve()]
    if newer and state.number(newer[0]) >= state.number(path):
        raise MinisdError(f"{path.name} is not the newest", str(folder), f"the run has {newer[0].name}",
                          "go on in a new --out, or remove the newer ones", USAGE)
    if fault := state.verify(path):
        raise MinisdError("the checkpoint cannot be read", str(path), fault, "give another")
    return path


def compare(before: Mapping[str, Any], now: Mapping[str, Any], path: Path, how: str) -> list[str]:
    """What has changed since a checkpoint, as notes; an error where it would no longer be the same run."""
    was, become = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    changes = {name: f"{name}: {json.dumps(was[name])} -> {json.dumps(become[name])}"
               for name in was if name in become and was[name] != become[name]}
    grave = [name for name in changes if not name.startswith(FREE)]
    if grave and how in ("auto", "latest"):
        raise MinisdError("the run was begun with other settings", str(path),
                          "; ".join(changes[name] for name in grave)[:500],
                          f"give the old ones (recipe.json beside the run), or agree by --resume {path}", USAGE)
    return list(changes.values())


def trim(metrics: Path, step: int) -> None:
    """Drop the rows that came after the resumed step, so that none is there twice, and what a kill cut off."""
    if metrics.is_file():
        kept = [line for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines()
                if 0 <= step_of(line) <= step]
        put(metrics, "".join(line + "\n" for line in kept))


def step_of(row: str) -> int:
    """The step of a row of metrics.jsonl, -1 if it is not whole."""
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
