"""A step of distillation beside BK-SDM's trainer: `python benchmarks/distill.py`, about half an hour and 23 GiB.

All distil SD1.5 without its mid block from the same random weights, batch 1, computing in bfloat16, gradients clipped,
an average kept. Theirs is rebuilt as it is published (kd_train_text_to_image.py): diffusers' UNets, forward hooks on
every down and up block, AdamW as PyTorch has it, VAE and text encoder at every step. Ours is minisd.distill's own loop,
with float32 weights (its default) and with `weights = "bf16"`. Each has a process of its own, one after the other; the
peak of its memory is the system's figure for that process. What was measured is kept in the JSON file, and `--only` and
`--sides` measure a part anew.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
OURS, ROUNDED, THEIRS, GIB = "minisd", "minisd-bf16", "diffusers", 2 ** 30
CONTESTANTS = {OURS: "minisd, float32 weights", ROUNDED: "minisd, bfloat16 weights", THEIRS: "BK-SDM's trainer"}
CAPTIONS = ("a red apple on a table", "a dog that sleeps")
HEAD = ("latents", "trainer", "s/step", "times as fast", "GiB", "of the memory")
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a miniature instead of Stable Diffusion 1.5; not saved")
    parser.add_argument("--sides", type=int, nargs="+", help="of the latents; 32 and 64")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="some alone")
    parser.add_argument("--steps", type=int, default=4, help="that are timed, after one that is not")
    parser.add_argument("--weights", type=Path, help="keep the random weights (8.5 GB) in this folder, or find them")
    parser.add_argument("--out", type=Path, help="the JSON file; by default in results/")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sides = options.sides or ([8] if options.quick else [32, 64])
    if options.contestant:
        answer(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Everyone at every size, and the ratios."""
    from speed import RESULTS, cpu, machine, make_weights, slug
    out = options.out or (None if options.quick else RESULTS / f"distill-{slug(cpu())}.json")
    rows: Rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out and out.is_file() else []
    with tempfile.TemporaryDirectory(prefix="minisd-distill-") as scratch:
        weights = options.weights or Path(scratch)
        if not (weights / THEIRS).exists():
            make_weights(weights, options.quick)
        for side, name in product(options.sides, options.only):
            rows = merged(rows, {"side": side, "trainer": name, **asked(name, weights, side, options.steps)})
            if out:
                out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def merged(rows: Rows, found: dict[str, Any]) -> Rows:
    """The rows with one measured anew, by size and trainer."""
    others = [row for row in rows if (row["side"], row["trainer"]) != (found["side"], found["trainer"])]
    return sorted([*others, found], key=lambda row: (row["side"], list(CONTESTANTS).index(row["trainer"])))


def table(rows: Rows) -> str:
    """Markdown; ratios to the published trainer where it was measured at that size."""
    theirs = {row["side"]: row for row in rows if row["trainer"] == THEIRS}
    rule = "|".join(["---", "---"] + ["---:"] * (len(HEAD) - 2))
    lines = [f"| {' | '.join(HEAD)} |", f"|{rule}|"]
    for row in rows:
        side, other = row["side"], theirs.get(row["side"])
        faster = f"**{median(other['seconds']) / median(row['seconds']):.2f}**" if other and other != row else ""
        smaller = f"**{row['peak'] / other['peak']:.2f}**" if other and other != row else ""
        lines.append(f"| {side}x{side} | {CONTESTANTS[row['trainer']]} | {median(row['seconds']):.2f} | {faster} | "
                     f"{row['peak'] / GIB:.2f} | {smaller} |")
    return "\n".join(lines)


def asked(name: str, weights: Path, side: int, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--contestant", name, "--weights", str(weights), "--sides", str(side),
               "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def answer(options: argparse.Namespace) -> None:
    """One contestant in this process: seconds of each step, and the peak of its memory in bytes."""
    side = options.sides[0]
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder), 8 * side)
        given = (options.weights, Path(folder), side)
        step = their_step(*given) if options.contestant == THEIRS else our_step(*given, options.contestant == ROUNDED)
        seconds = []
        for _ in range(options.steps + 1):
            start = perf_counter()
            terms = step()
            seconds.append(perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": seconds[1:], "first": seconds[0], "peak": peak, "terms": terms}))


def draw_pictures(folder: Path, size: int) -> None:
    """Noise with captions: what is on a picture takes no time."""
    from PIL import Image
    for n, caption in enumerate(CAPTIONS):
        Image.frombytes("RGB", (size, size), os.urandom(3 * size * size)).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(caption)


def our_step(weights: Path, folder: Path, side: int, rounded: bool):
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import redirect_stdout

    from minisd import heap
    from minisd.fast.learning import learning
    from minisd.train import loop
    from minisd.train.config import DataConfig, TrainConfig
    from minisd.train.distillation import Place, attention, prepared
    from minisd.train.experiment import Experiment
    from minisd.train.ranks import ALONE
    train = TrainConfig(steps=100, batch=1, lr=5e-5, warmup=0, weights="bf16" if rounded else "fp32")
    experiment = Experiment("x", str(weights / OURS), train=train, data=DataConfig(size=8 * side))
    with redirect_stdout(sys.stderr):
        run = prepared(experiment, Place(folder, folder / "out", folder / "cache"), ALONE)
    if rounded:
        heap.hold()
    ahead = loop.prefetched(run, ThreadPoolExecutor(1))

    def step() -> dict[str, float]:
        with attention(run), learning(run.task.trained()):
            loop.update(run, ahead)
        if run.bad_steps:
            raise RuntimeError("a step was skipped: there is nothing to compare")
        return {name: values[-1] for name, values in run.unlogged.items()}
    return step


def their_step(weights: Path, folder: Path, side: int):
    import numpy as np
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.training_utils import EMAModel
    from PIL import Image
    pipe = StableDiffusionPipeline.from_pretrained(weights / THEIRS)
    teacher, noise_levels = pipe.unet, DDPMScheduler.from_config(pipe.scheduler.config)
    student = UNet2DConditionModel.from_config({**teacher.config, "mid_block_type": None})
    kept = {name: value for name, value in teacher.state_dict().items() if not name.startswith("mid_block")}
    student.load_state_dict(kept)
    for part in (pipe.vae, pipe.text_encoder, teacher):
        part.requires_grad_(False).to(torch.bfloat16)
    average = EMAModel(student.parameters(), model_cls=UNet2DConditionModel, model_config=student.config)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, weight_decay=1e-2)
    mine, theirs = hooked(student.train()), hooked(teacher)
    files = sorted(folder.glob("*.png"))

    def step() -> dict[str, float]:
        picture = np.array(Image.open(files[step.number % len(files)]).convert("RGB"))
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        words = CAPTIONS[step.number % len(files)]
        step.number += 1
        ids = pipe.tokenizer(words, padding="max_length", truncation=True, return_tensors="pt",
                             max_length=pipe.tokenizer.model_max_length).input_ids
        with torch.no_grad():
            latents = pipe.vae.encode(pixels.to(torch.bfloat16)).latent_dist.sample() * 0.18215
            states = pipe.text_encoder(ids)[0]
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (1,))
        noisy = noise_levels.add_noise(latents, noise, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                answer = teacher(noisy, t, states).sample
            out = student(noisy, t, states).sample
            terms = {"noise": F.mse_loss(out.float(), noise.float()), "output": F.mse_loss(out.float(), answer.float()),
                     "features": sum(F.mse_loss(mine[name].float(), theirs[name].float()) for name in mine)}
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(student.parameters())
        return {name: value.item() for name, value in terms.items()}

    step.number = 0
    return step


def hooked(unet) -> dict:
    """The outputs of every down and up block, as the last call left them."""
    found: dict = {}
    for name in ("down_blocks", "up_blocks"):
        for i, block in enumerate(getattr(unet, name)):
            key = f"{name}.{i}"
            block.register_forward_hook(lambda _, __, out, key=key: found.__setitem__(
                key, out[0] if isinstance(out, tuple) else out))
    return found


if __name__ == "__main__":
    main()
