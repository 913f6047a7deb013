"""How time and memory grow: `python benchmarks/scaling.py`, about half an hour on two cores.

Along each axis one thing changes: the size of a picture, how many are drawn together, the steps, the LoRAs laid on.
Sizes, batches and LoRAs are measured on Stable Diffusion 1.5 with random weights by a single guided step of the UNet
and a single decoding, since a whole picture is the one as often as it has steps and the other once; steps on whole
pictures of the embedded model. Slopes are of a straight line through the logarithms: 1 is in proportion.

Each axis has a process of its own and begins with its smallest point. What was measured is kept in the JSON file, and
a run that was cut off goes on there; `--anew` measures once more.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jobs
import torch
from growth import AXES, PICTURE, SAMPLER, STEP, Point, findings, keep, kept, plot, shown, table
from measure import HERE, OURS
from meter import GIB, Meter
from speed import RESULTS, cpu, make_weights, slug
from torch import Tensor

sys.path.insert(0, str(HERE.parent))

from minisd import attach, store
from minisd.fast.beside import keeping
from minisd.samplers.denoiser import Conditioning, denoiser
from minisd.samplers.guidance import guided
from minisd.samplers.loop import sample
from minisd.samplers.noise import NOISES
from minisd.samplers.recipes import sampler

ENOUGH, MOST = 8.0, 5                                 # seconds after which a point is not repeated; repeats at most
RANK, CFG = 16, 7.5
BESIDE = ("*_attn.*", "*.ff.*_proj", "*.attn.*.proj_*")  # where kohya's trainer lays a LoRA: all of a transformer


def main(args: Sequence[str] | None = None) -> None:
    options = parsed(args)
    out = options.out or (None if options.quick else RESULTS / f"scaling-{slug(cpu())}.json")
    with tempfile.TemporaryDirectory(prefix="minisd-scaling-", dir=options.scratch) as folder:
        weights, path = options.weights or Path(folder), out or Path(folder) / "scaling.json"
        if not (weights / OURS).exists():
            make_weights(weights, options.quick)
        if options.axis:
            measure(options, weights, path)
            return
        for axis in options.axes:
            told = ["--axis", axis, "--weights", str(weights), "--out", str(path), "--device", options.device,
                    "--dtype", options.dtype, *["--quick"] * options.quick, *["--anew"] * options.anew]
            subprocess.run([sys.executable, __file__, *told], check=True)
        points = kept(path)
        print(table(points) + "\n\n" + "\n".join(findings(points)))
        plot(points).save(path.with_suffix(".png"))


def parsed(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="miniatures at two points of each axis; not saved")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="some only")
    parser.add_argument("--anew", action="store_true", help="measure again what the JSON file has")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, help="the JSON file, beside which the plot is; by default in results/")
    parser.add_argument("--weights", type=Path, help="keep the random weights (8.5 GB) in this folder, or find them")
    parser.add_argument("--scratch", type=Path, help="where else they are for the time being (the system's place)")
    parser.add_argument("--axis", choices=AXES, help=argparse.SUPPRESS)
    return parser.parse_args(args)


# ---------------------------------------------------------------- what is measured
def measure(options: argparse.Namespace, weights: Path, path: Path) -> None:
    """The points of one axis that the file lacks, each written as soon as it is known."""
    axis, meter = AXES[options.axis], Meter(options.device)
    values = axis.few if options.quick else axis.values
    todo = [(job, x) for x in values for job in axis.jobs
            if options.anew or not any((p.axis, p.job, p.x) == (options.axis, job, x) for p in kept(path))]
    if not todo:
        return
    subject = Subject("emoji" if options.axis == "steps" else str(weights / OURS), options, meter)
    for job, x in todo:
        with torch.inference_mode(), keeping():       # as in the middle of a picture
            run = subject.job(options.axis, job, x)
            run()
            held, seconds = meter.begin(), [meter.seconds(run)]
            while sum(seconds) < ENOUGH and len(seconds) < MOST:
                seconds.append(meter.seconds(run))
        point = Point(options.axis, job, x, tuple(seconds), subject.held or held, meter.peak())
        print(f"{options.axis} {x}, {job}: {shown(point.time)}, {point.peak / GIB:.2f} GiB", file=sys.stderr)
        keep(path, point)


class Subject:
    """The model that is measured, and its jobs as functions without arguments."""

    def __init__(self, source: str, options: argparse.Namespace, meter: Meter):
        self.quick, self.meter = options.quick, meter
        self.sd = store.load(source, options.device, "auto" if source == "emoji" else options.dtype).ready()
        self.held = meter.begin()

    def job(self, axis: str, name: str, x: int) -> Callable[[], Any]:
        if name == PICTURE:
            return lambda: self.sd.txt2img("a red apple", steps=x, cfg=CFG, sampler="ddim")
        if axis == SAMPLER:
            return self.sampler(name, x)
        if axis == "adapters":
            self.wear(x)
        side = (x if axis == "size" else 32 if self.quick else 512) // self.sd.cfg.vae.factor
        batch = x if axis == "batch" else 1
        return self.step(side, batch) if name == STEP else self.decoding(side, batch)

    def step(self, side: int, batch: int) -> Callable[[], Tensor]:
        """The UNet on pairs."""
        given = jobs.inputs(self.sd.dtype, side, self.sd.cfg.unet.context_dim)
        x, context = (t.repeat(batch, 1, *[1] * (t.dim() - 2)).to(self.meter.device)
                      for t in (given.pair, given.context))
        t = torch.full((2 * batch,), float(jobs.TIMESTEP), device=self.meter.device)
        return lambda: self.sd.unet(x, t, context)

    def decoding(self, side: int, batch: int) -> Callable[[], Tensor]:
        """As a picture is decoded: many not all at once, and a large one in strips."""
        drawings = [self.sd.drawing("")] * batch
        latents = torch.zeros(batch, self.sd.cfg.vae.latent_channels, side, side, device=self.meter.device)
        return lambda: self.sd.pictures(latents, drawings)

    def wear(self, count: int) -> None:
        """So many LoRAs on the transformers of the UNet, as they lie there after their files were read."""
        with torch.inference_mode(False):
            for n in range(len(attach.adapters(self.sd.unet)), count):
                draws = torch.Generator().manual_seed(n)
                for side in attach.attach(self.sd.unet, attach.LoRASpec(f"lora{n}", RANK, targets=BESIDE), draws):
                    side.requires_grad_(False).normal_(std=0.01, generator=draws)
                    side.data = side.data.to(self.sd.dtype)
            self.sd.ready()

    def sampler(self, name: str, calls: int) -> Callable[[], Tensor]:
        """A guided walk over latents of 64 x 64 with a network that answers at once: all that is not the network."""
        recipe, table, device = sampler(name), self.sd.cfg.noise, self.meter.device
        schedule, shape = recipe.schedule(table, calls), (self.sd.cfg.vae.latent_channels, 64, 64)
        words = Conditioning(torch.zeros(1, 77, self.sd.cfg.unet.context_dim, dtype=self.sd.dtype, device=device))
        told = guided(denoiser(lambda x, t, context, label: x, self.sd.cfg.prediction), words, words, lambda level: CFG)

        def walk() -> Tensor:
            noise = NOISES[recipe.noise]([0], shape, device=device)
            return sample(recipe.solver, told, schedule[0].scale * noise.draw(), schedule, table, noise=noise)

        return walk


if __name__ == "__main__":
    main()
