"""From a stage of a recipe to a run of the loop: builds its task and data, holds the folder, exports the result."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch.nn.attention import SDPBackend, sdpa_kernel

from minisd import store
from minisd.clip import CLIPText
from minisd.errors import RESOURCE, USAGE, MinisdError
from minisd.train import loop, state
from minisd.train.config import Recipe, Stage
from minisd.train.data import Batch, Pictures, read_rows
from minisd.train.encoded import Encoded
from minisd.train.tasks.clip import TrainCLIP
from minisd.train.tasks.finetune import Finetune
from minisd.train.tasks.model import take
from minisd.train.tasks.vae import TrainVAE
from minisd.vae import VAE


def train_stage(recipe: Recipe, stage: Stage, data: Path, out: Path, resume: str) -> None:
    """Train one stage to its end and put its parts into `out/model`; a finished stage is left alone."""
    folder, finished = out / stage.name, out / stage.name / "finished"
    if finished.is_file():
        print(f"{stage.name}: finished before")
        return
    with locked(folder):
        task, batches = build(recipe, stage, data, out)
        current = state.State.new(task.trained(), stage.train)
        if resume == "never" and state.checkpoints(folder):
            raise MinisdError("the run folder holds checkpoints", str(folder), "--resume never was given",
                              "name a new folder, or --resume auto", USAGE)
        for note in loop.start(folder, current, "auto"):
            print(f"{stage.name}: {note}")
        # Short sequences: the plain attention's backward pass is the faster one on the CPU.
        with sdpa_kernel(SDPBackend.MATH):
            loop.fit(loop.Run(folder, task, batches, stage.train, recipe.seed, current))
        task.export(out / "model")
        finished.touch()


def build(recipe: Recipe, stage: Stage, data: Path, out: Path) -> tuple[loop.Task, Callable[[list[int]], Batch]]:
    """The task of a stage and the source of its batches."""
    pictures = Pictures(data, stage.data, recipe.seed)
    whole = replace(stage.data, crop=0)           # measures are taken on whole pictures
    split = "holdout" if read_rows(data, whole, "holdout") else "train"
    held_out = Pictures(data, whole, recipe.seed, split)
    model = out / "model"
    cfg = recipe.model
    if (model / store.CONFIG).is_file():  # the scale was measured at the end of the VAE's stage
        cfg = replace(cfg, latent_scale=store.read_config(model).latent_scale)
    if stage.vae is not None:
        return TrainVAE(cfg, stage.vae, model, held_out, recipe.seed), pictures.batch
    if stage.clip is not None:
        return TrainCLIP(cfg, stage.clip, model, held_out, recipe.seed), pictures.batch
    assert stage.finetune is not None
    vae = take(model, "vae")
    text = None if stage.finetune.train_text else take(model, "text")
    encoded, unseen = (Encoded(source, cast(VAE, vae), cast(CLIPText | None, text), out / "cache")
                       for source in (pictures, held_out))
    return Finetune(cfg, stage.finetune, model, encoded, unseen, recipe.preview, recipe.seed), encoded.batch


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, so a killed run never leaves a stale one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise MinisdError("another run holds this folder", str(folder), "two runs would overwrite each other",
                              "wait for it, or name another --out", RESOURCE) from fault
        yield
