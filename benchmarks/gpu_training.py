"""Steps of distillation and of finetuning on a device, of minisd and as diffusers' users have them, for `gpu.py`.

Ours are the loops of `minisd.distill` and `minisd.train`, with latents and text states cached. Theirs are rebuilt as
they are published: BK-SDM's kd_train_text_to_image.py and diffusers' train_text_to_image.py, which encode pictures and
text at every step; reading and decoding of files is not counted against them. Both compute in bfloat16, keep float32
weights, clip gradients and keep an average.
"""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from distill import hooked
from gpu_drawing import Place
from measure import HERE, OURS, THEIRS
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(HERE.parent))

from minisd import store
from minisd.train import distillation, loop, stages, state
from minisd.train.config import DataConfig, FinetuneTask, Recipe, Stage, TrainConfig
from minisd.train.experiment import Experiment
from minisd.train.ranks import ALONE

CAPTION, RATE = "a picture of things, number {}", 5e-5
DISTILLATION, FINETUNING = "distillation", "finetuning"


def draw_pictures(folder: Path, count: int, size: int) -> Path:
    """Noise with captions: what is on a picture takes no time."""
    folder.mkdir(exist_ok=True)
    for n in range(count):
        Image.frombytes("RGB", (size, size), os.urandom(3 * size * size)).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(CAPTION.format(n))
    return folder


def rounded(kind: str, place: Place, scratch: Path, batch: int) -> Callable[[], None]:
    """Ours with weights, average and moments in bfloat16."""
    return ours(kind, place, scratch, batch, "bf16")


def ours(kind: str, place: Place, scratch: Path, batch: int, weights: str = "fp32") -> Callable[[], None]:
    """An update, after everything has been cached."""
    pictures = draw_pictures(scratch / "pictures", batch, 8 * place.side)
    train = TrainConfig(steps=1 << 20, batch=batch, lr=RATE, warmup=0, weights=weights)
    data, out = DataConfig(size=8 * place.side), scratch / "out"
    with redirect_stdout(sys.stderr):
        if kind == DISTILLATION:
            experiment = Experiment("x", str(place.weights / OURS), train=train, data=data)
            where = distillation.Place(pictures, out, scratch / "cache", str(place.device))
            run = distillation.prepared(experiment, where, ALONE)
        else:
            run = finetuned(place, pictures, out, train, data)
    ahead = loop.prefetched(run, loop.reading_thread())

    def update() -> None:
        loop.update(run, ahead)
        if run.bad_steps:
            raise RuntimeError("a step was skipped: there is nothing to compare")

    update()
    return update


def finetuned(place: Place, pictures: Path, out: Path, train: TrainConfig, data: DataConfig) -> loop.Run:
    """The run of a recipe's one stage, over a copy of the model."""
    shutil.copytree(place.weights / OURS, out / stages.MODEL, copy_function=os.symlink)
    stage = Stage("unet", train, data, finetune=FinetuneTask())
    recipe = Recipe("x", (stage,), store.read_config(out / stages.MODEL))
    sources = stages.sources(recipe, stage, pictures)
    task, batches = stages.build(recipe, stage, recipe.model, sources, out, place.device)
    return loop.Run(out / "unet", task, batches, train, 0, state.State.new(task.trained(), train))


def theirs(kind: str, place: Place, scratch: Path, batch: int) -> Callable[[], None]:
    """An update of a published trainer; the teacher and its terms in distillation alone."""
    pipe = StableDiffusionPipeline.from_pretrained(place.weights / THEIRS)
    levels, device = DDPMScheduler.from_config(pipe.scheduler.config), place.device
    teacher = pipe.unet.requires_grad_(False).to(device, torch.bfloat16) if kind == DISTILLATION else None
    student = pupil(pipe.unet if teacher is None else teacher, midless=teacher is not None).to(device).train()
    for part in (pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).to(device, torch.bfloat16)
    average = EMAModel(student.parameters(), model_cls=UNet2DConditionModel, model_config=student.config)
    average.to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=1e-2)
    mine = hooked(student) if teacher is not None else {}
    features = hooked(teacher) if teacher is not None else {}
    pixels = torch.rand(batch, 3, 8 * place.side, 8 * place.side) * 2 - 1
    words = [CAPTION.format(n) for n in range(batch)]

    def loss() -> Tensor:
        ids = pipe.tokenizer(words, padding="max_length", truncation=True, return_tensors="pt",
                             max_length=pipe.tokenizer.model_max_length).input_ids.to(device)
        with torch.no_grad():
            given = pixels.to(device, torch.bfloat16)
            latents = pipe.vae.encode(given).latent_dist.sample() * pipe.vae.config.scaling_factor
            states = pipe.text_encoder(ids)[0]
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (batch,), device=device)
        noisy = levels.add_noise(latents, noise, t)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out = student(noisy, t, states).sample
            total = F.mse_loss(out.float(), noise.float())
            if teacher is None:
                return total
            answer = asked(teacher, noisy, t, states)
            likeness = sum(F.mse_loss(mine[name].float(), features[name].float()) for name in mine)
            return total + F.mse_loss(out.float(), answer.float()) + likeness

    def update() -> None:
        total = loss()
        total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(student.parameters())
        total.item()

    update()
    return update


@torch.no_grad()
def asked(teacher: UNet2DConditionModel, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
    return teacher(x, t, states).sample


def pupil(unet: UNet2DConditionModel, midless: bool) -> UNet2DConditionModel:
    """A copy that learns, in float32, perhaps without the middle."""
    config = {**unet.config, **({"mid_block_type": None} if midless else {})}
    made = UNet2DConditionModel.from_config(config)
    kept = {name: value for name, value in unet.state_dict().items() if not (midless and name.startswith("mid_block"))}
    made.load_state_dict(kept)
    return made


TRAINING: dict[str, Callable[[str, Place, Path, int], Callable[[], None]]] = {
    OURS: ours, f"{OURS}, bfloat16 weights": rounded, THEIRS: theirs}
