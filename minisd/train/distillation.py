"""From an experiment to a run of the loop: teacher, student and data, and at the end the model that is taken home."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import nn

from minisd import store, surgery
from minisd.errors import RESOURCE, USAGE, MinisdError
from minisd.fast.learning import learning
from minisd.files import put
from minisd.pipeline import StableDiffusion
from minisd.train import loop, stages, state
from minisd.train.captions import captions_of
from minisd.train.config import Preview
from minisd.train.data import Pictures, unseen
from minisd.train.encoded import Encoded, Words
from minisd.train.experiment import Experiment, read
from minisd.train.imagined import Imagined
from minisd.train.ranks import Ranks, joined
from minisd.train.replicated import Replicated
from minisd.train.report import read_metrics, write_report
from minisd.train.resume import resume
from minisd.train.sharded import Sharded
from minisd.train.stages import FINISHED, MODEL, finished, flat, listing, locked, remarks
from minisd.train.tasks.distill import Distill, Source
from minisd.train.tasks.gallery import save_whole
from minisd.unet import UNet

RECIPE = "recipe.json"


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes."""

    data: Path                                    # pictures with captions; or captions alone, one a line
    out: Path                                     # the run's folder
    cache: Path                                   # of latents and text states; runs share it
    device: str = "cpu"


def distill(experiment: Experiment, place: Place, how: str) -> None:
    """Run an experiment to its end and put the student into `out/model`; a finished one is left alone."""
    with joined() as ranks:
        if how in ("auto", "latest") and finished(place.out, experiment.train.steps):
            print(f"{experiment.name}: finished before")
            return
        if how == "latest" and not state.checkpoints(place.out):
            raise MinisdError("nothing to resume", str(place.out), "it holds no checkpoint",
                              "name the folder of an earlier run, or start one with --resume auto")
        try:
            with locked(place.out, ranks):
                run_whole(experiment, place, how, ranks)
        except OSError as fault:                  # whatever was being written; checkpoints are whole at any moment
            raise MinisdError(f"{experiment.name} cannot go on", str(fault.filename or place.out),
                              fault.strerror or str(fault), "free space or give rights, and resume",
                              RESOURCE) from fault


def run_whole(experiment: Experiment, place: Place, how: str, ranks: Ranks) -> None:
    """Build, resume, measure what is untrained, train, export."""
    run = prepared(experiment, place, ranks)
    notes = resume(run, how)
    with attention(run), learning(run.task.trained()):  # of all that is encoded, too: it rounds otherwise
        if ranks.first:
            put(place.out / RECIPE, json.dumps(asdict(experiment), indent=1))
            print(*(f"{experiment.name}: {note}" for note in notes), sep="\n")
        if ranks.any(ranks.first and run.state.step == 0 and not read_metrics(place.out / loop.METRICS)):
            loop.show(run)                        # the bar to beat
        loop.fit(run)
    with run.state.held.showing(run.state.ema):
        if ranks.first:
            run.task.export(place.out / MODEL)
    if ranks.first:
        write_report(place.out)
        (place.out / FINISHED).touch()
        print(f"{experiment.name}: the student, with averaged weights, is {place.out / MODEL}")


def attention(run: loop.Run) -> AbstractContextManager[None]:
    """As of any training on latents of the student's pictures."""
    cfg = cast(Distill, run.task).cfg
    return stages.attention(run.device, cfg.size // cfg.vae.factor)


def prepared(experiment: Experiment, place: Place, ranks: Ranks) -> loop.Run:
    """The run as it begins."""
    sd = store.load(experiment.teacher, place.device, "float32")
    if len(sd.text) != 1:
        raise MinisdError(f"a teacher with {len(sd.text)} text encoders", experiment.teacher,
                          "one is distilled with", "give a model with one", USAGE)
    digest = store.fingerprint(store.find(experiment.teacher))
    cfg = replace(sd.cfg, unet=surgery.student(sd.cfg.unet, experiment.student.remove))
    student, began = first_student(experiment, sd, place.out)
    words = Words(sd.text[0], place.cache)
    data, held_out, rows = sources(experiment, sd, place)
    train = experiment.train
    task = Distill(cfg, experiment.distill, sd, student, data, held_out, words, experiment.preview, experiment.seed,
                   train.steps, train.batch)
    if ranks.first:
        for note in (*described(experiment, sd, task), began, *rows):
            print(f"{experiment.name}: {note}")
    settings = {**flat(asdict(experiment)), "teacher": digest[:16], "data.rows": rows[0], "began": began,
                "data.together": train.batch if experiment.data.buckets > 1 else 1,
                "samples_per_step": train.batch * train.accumulate * ranks.count}
    for free in ("name", "student.start", *(name for name in settings if name.startswith("preview."))):
        settings.pop(free)
    holding = partial(Sharded if train.shard and ranks.count > 1 else Replicated, ranks=ranks)
    begun = state.State.new(task.trained(), train, seed=experiment.seed, holding=holding)
    if train.shard:
        print(f"{experiment.name}: {begun.held.note()}")
    return loop.Run(place.out, task, data.batch, train, experiment.seed, begun, settings)


def first_student(experiment: Experiment, sd: StableDiffusion, out: Path) -> tuple[UNet, str]:
    """The student as it begins, and where from: cut out of the teacher, or an earlier run's averaged weights."""
    cfg, start = surgery.student(sd.cfg.unet, experiment.student.remove), experiment.student.start
    made = surgery.transplant(sd.unet, cfg)
    if not start:
        return made, "the student begins with the teacher's weights"
    path = next((one for one in (Path(start), out.parent / start) if one.is_dir()), None)
    if path is None:
        raise MinisdError("no such run to begin from", str(out.parent / start), "neither a run nor a checkpoint",
                          "run the experiment that it names first, or give another by --start", USAGE)
    path = newest(path) if not path.name.startswith(state.PREFIX) else path
    if fault := state.verify(path):
        raise MinisdError("the checkpoint cannot be read", str(path), fault, "give another by --start")
    load_weights(path, "ema", made)
    seal = state.read_manifest(path).get("seal", "")
    return made, f"the student begins with the averaged weights of {path.parent.name}/{path.name} ({seal[:8]})"


def load_weights(checkpoint: Path, which: str, module: nn.Module) -> None:
    """Put a verified checkpoint's `params`, or their average `ema`, into a module that was trained whole."""
    found, params = load_file(checkpoint / f"{which}.safetensors"), dict(module.named_parameters())
    if {name: tensor.shape for name, tensor in found.items()} != {name: p.shape for name, p in params.items()}:
        raise MinisdError("the checkpoint is of another student", str(checkpoint), "names or shapes differ",
                          "give one of the same cuts", USAGE)
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(found[name])


def newest(run: Path) -> Path:
    """A run's newest checkpoint that verifies."""
    path, _ = state.newest(run)
    if path is None:
        raise MinisdError("no checkpoint to begin from", str(run), "none that verifies is there", "give another run")
    return path


def sources(experiment: Experiment, sd: StableDiffusion, place: Place) -> tuple[Source, Source, list[str]]:
    """What is trained on and what is measured, and notes on both; the first note names the training rows."""
    cfg, seed = experiment.data, experiment.seed
    if experiment.distill.images == "teacher" or place.data.is_file():
        manner = experiment.preview
        both = [Imagined(captions, sd, manner, seed, place.cache) for captions in captions_of(place.data, cfg)]
        return both[0], both[1], [f"{listing(both[0].captions)} captions, drawn by the teacher with {told(manner)}",
                                  f"each is drawn when it is first needed, and kept in {place.cache}"]
    if cfg.size != sd.cfg.size:
        print(f"{experiment.name}: pictures of {cfg.size} pixels, the teacher's were of {sd.cfg.size}")
    pictures = Pictures(place.data, cfg, seed, together=experiment.train.batch)
    held_out = unseen(place.data, cfg, seed)
    encoded, measured = (Encoded(source, sd.vae, None, place.cache) for source in (pictures, held_out))
    rows = listing([f"{row.path.name} {row.captions}" for row in pictures.rows])
    return encoded, measured, [f"{rows} pictures", *list(remarks(sd.cfg, pictures, held_out))[1:]]


def told(manner: Preview) -> str:
    return f"{manner.steps} steps of {manner.sampler}, guidance {manner.guidance:g}"


def described(experiment: Experiment, sd: StableDiffusion, task: Distill) -> Iterator[str]:
    """Sizes of both networks."""
    full, left = (sum(p.numel() for p in unet.parameters()) for unet in (task.teacher, task.student))
    yield (f"teacher {sd.name} has {full:,} parameters, the student without {', '.join(experiment.student.remove)} "
           f"{left:,} ({100 * left / full:.1f} %)")


def take_home(checkpoint: Path, target: Path, raw: bool) -> str:
    """Write a checkpoint's student as a whole model folder, and say which weights it has."""
    if target.exists():
        raise MinisdError("the folder is there", str(target), "nothing is overwritten", "name a new one", USAGE)
    if fault := state.verify(checkpoint):
        raise MinisdError("the checkpoint cannot be read", str(checkpoint), fault, "give another")
    experiment = read(str(checkpoint.parent / RECIPE), None)
    sd = store.load(experiment.teacher, "cpu", "float32")
    student = surgery.transplant(sd.unet, surgery.student(sd.cfg.unet, experiment.student.remove))
    load_weights(checkpoint, "params" if raw else "ema", student)
    save_whole(target, replace(sd, cfg=replace(sd.cfg, unet=student.cfg), unet=student))
    return f"{target}: {checkpoint.name} of {experiment.name}, {'raw' if raw else 'averaged'} weights"
