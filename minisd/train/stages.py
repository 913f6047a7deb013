"""From a stage of a recipe to a run of the loop: builds its task and data, holds the folder, exports the result."""

import fcntl
import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisd import store
from minisd.config import ModelConfig
from minisd.devices import pick_device
from minisd.errors import RESOURCE, MinisdError
from minisd.fast.learning import learning
from minisd.text import tokenizer_of
from minisd.train import loop, personal, state
from minisd.train.config import Recipe, Stage
from minisd.train.data import Batch, Pictures, unseen
from minisd.train.encoded import Encoded
from minisd.train.ranks import ALONE, Ranks
from minisd.train.report import read_metrics
from minisd.train.resume import resume
from minisd.train.rows import Row
from minisd.train.tasks import model
from minisd.train.tasks.clip import TrainCLIP
from minisd.train.tasks.finetune import Finetune
from minisd.train.tasks.vae import TrainVAE

MODEL, CACHE, FINISHED, LOCK = "model", "cache", "finished", "lock"
SHORT = 256                                       # tokens of latents whose plain attention goes back faster on the CPU
COUNTED = 10_000                                  # captions whose length is looked at beforehand


def train(recipe: Recipe, names: Sequence[str], data: Path, out: Path, how: str,
          device: str = "cpu") -> None:
    """Train the named stages, one after the other; `how` as in `resume`, `latest` being asked of the whole run."""
    begun = [name for name in names if (out / name / FINISHED).is_file() or state.checkpoints(out / name)]
    if how == "latest" and not begun:
        raise MinisdError("nothing to resume", str(out), f"no checkpoint in {', '.join(names)}",
                          "name the folder of an earlier run, or start one with --resume auto")
    where = pick_device(device)
    for name in names:
        try:
            train_stage(recipe, recipe.stage(name), data, out, how, where)
        except OSError as fault:                  # whatever was being written; checkpoints are whole at any moment
            raise MinisdError(f"stage {name} cannot go on", str(fault.filename or out / name),
                              fault.strerror or str(fault), "free space or give rights, and resume",
                              RESOURCE) from fault


def train_stage(recipe: Recipe, stage: Stage, data: Path, out: Path, how: str, device: torch.device) -> None:
    """Train one stage to its end and put its parts into `out/model`; a finished stage is left alone."""
    folder = out / stage.name
    if how in ("auto", "latest") and finished(folder, stage.train.steps):
        print(f"{stage.name}: finished before")
        return
    with locked(folder):
        pictures, held_out = sources(recipe, stage, data)
        if stage.tuning is not None:
            tune(recipe, stage, (pictures, held_out), out, how, device)
        else:
            anew = stage.finetune is not None and stage.finetune.start == "random"
            model.check(out / MODEL, recipe.model, replaced=("unet",) if anew else ())
            cfg = with_scale(recipe.model, out / MODEL)
            task, batches = build(recipe, stage, cfg, (pictures, held_out), out, device)
            run = loop.Run(folder, task, batches, stage.train, recipe.seed,
                           state.State.new(task.trained(), stage.train, seed=recipe.seed),
                           settings(recipe, stage, cfg, pictures.rows))
            for note in (*resume(run, how), *remarks(cfg, pictures, held_out)):
                print(f"{stage.name}: {note}")
            # Short sequences: the plain attention's backward pass is the faster one on the CPU.
            plainly = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
            with plainly, learning(task.trained()):
                loop.fit(run)
            task.export(out / MODEL)
        (folder / FINISHED).touch()


def tune(recipe: Recipe, stage: Stage, data: tuple[Pictures, Pictures], out: Path, how: str,
         device: torch.device) -> None:
    """Make a model one's own: measured before it learns anything, and taken home into the stage's folder."""
    sd, fingerprint = personal.begin(recipe, stage, out / MODEL, device)
    task, batches = personal.tuned(recipe, stage, sd, data, out / CACHE)
    rates = task.learnt.rates
    told = settings(recipe, stage, sd.cfg, data[0].rows) | {"base": fingerprint[:16]}
    run = loop.Run(out / stage.name, task, batches, stage.train, recipe.seed,
                   state.State.new(task.trained(), stage.train, rates), told)
    count = sum(p.numel() for p in run.state.params.values())
    for note in (*resume(run, how), *remarks(sd.cfg, *data), f"{count:,} parameters learn"):
        print(f"{stage.name}: {note}")
    with attention(sd.device, stage.data.size // sd.cfg.vae.factor), learning(task.trained()):
        if run.state.step == 0 and not read_metrics(run.folder / loop.METRICS):
            loop.show(run)
        loop.fit(run)
    task.export(run.folder)
    if memory := personal.memorising(read_metrics(run.folder / loop.METRICS)):
        print(f"{stage.name}: {memory}")
    print(f"{stage.name}: {personal.use(recipe, stage, task.learnt, run.folder)}", flush=True)


def attention(device: torch.device, side: int) -> AbstractContextManager[None]:
    """Of latents of side x side. Of short sequences the plain attention's backward pass is the faster one on the CPU;
    of 1024 tokens it takes 2.5 times as long as the fused one, and 68 MB more."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and side ** 2 <= SHORT else nullcontext()


def finished(folder: Path, steps: int) -> bool:
    """Whether a stage has come to its end, which a recipe may since have moved."""
    there = state.checkpoints(folder)
    return (folder / FINISHED).is_file() and (not there or state.number(there[0]) >= steps)


def with_scale(cfg: ModelConfig, folder: Path) -> ModelConfig:
    """The recipe's model with the latents' scale, which was measured at the end of the VAE's stage."""
    if not (folder / store.CONFIG).is_file():
        return cfg
    return replace(cfg, latent_scale=store.read_config(folder).latent_scale)


def sources(recipe: Recipe, stage: Stage, data: Path) -> tuple[Pictures, Pictures]:
    """The pictures to train on, and those that are measured: held-out ones where there are any, whole and plain."""
    pictures = Pictures(data, stage.data, recipe.seed, together=stage.train.batch)
    return pictures, unseen(data, stage.data, recipe.seed)


def build(recipe: Recipe, stage: Stage, cfg: ModelConfig, data: tuple[Pictures, Pictures],
          out: Path, device: torch.device) -> tuple[loop.Task, Callable[[list[int]], Batch]]:
    """The task of a stage and the source of its batches."""
    folder, (pictures, held_out) = out / MODEL, data
    if stage.vae is not None:
        return TrainVAE(cfg, stage.vae, folder, held_out, recipe.seed, device), pictures.batch
    if stage.clip is not None:
        return TrainCLIP(cfg, stage.clip, folder, held_out, recipe.seed, device), pictures.batch
    assert stage.finetune is not None
    vae, text = model.take_vae(folder).to(device), model.take_text(folder).to(device)
    frozen = None if stage.finetune.train_text else text
    encoded, measured = (Encoded(source, vae, frozen, out / CACHE) for source in data)
    task = Finetune(cfg, stage.finetune, folder, encoded, measured, recipe.preview, recipe.seed, device)
    return task, encoded.batch


def settings(recipe: Recipe, stage: Stage, cfg: ModelConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """All that decides how a stage is trained, by dotted names: what a checkpoint is compared with."""
    if stage.finetune is None and stage.tuning is None:  # the scale of the latents matters to denoisers alone
        cfg = recipe.model
    data = {"rows": listing(f"{row.path.name} {row.captions}" for row in rows)}
    tree = {**asdict(stage), "model": asdict(cfg), "data": {**asdict(stage.data), **data}}
    return {"seed": recipe.seed, "samples_per_step": stage.train.batch * stage.train.accumulate, **flat(tree)}


def listing(lines: Iterable[str]) -> str:
    """How many lines, and eight digits that tell them from others."""
    every = [f"{line}\n" for line in lines]
    listed = hashlib.sha256("".join(every).encode("utf-8", "surrogatepass"))
    return f"{len(every)} ({listed.hexdigest()[:8]})"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def remarks(cfg: ModelConfig, pictures: Pictures, held_out: Pictures) -> Iterator[str]:
    """What the user should know of the data before hours are spent on it."""
    yield f"{len(pictures.rows)} pictures"
    if held_out.split == pictures.split:
        yield "none are held out: measures are taken on the training pictures"
    tokenizer = tokenizer_of(cfg.text[0])
    captions = list(islice((caption for row in pictures.rows for caption in row.captions), COUNTED))
    long = [caption for caption in captions if len(tokenizer.tokenize(caption)) > tokenizer.room]
    if long:
        yield (f"{len(long)} of {len(captions)} captions have more than {tokenizer.room} tokens and are cut, such as "
               f"“{long[0][:60]}…”")


@contextmanager
def locked(folder: Path, ranks: Ranks = ALONE) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, so a killed run never leaves a stale one.

    Of several ranks the first holds it for all.
    """
    if not ranks.first:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            file.seek(0)
            raise MinisdError("another run holds this folder", str(folder), file.read(100).strip(),
                              "wait for it, or name another --out", RESOURCE) from fault
        file.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        yield
