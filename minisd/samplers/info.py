"""What a sampler's name stands for, in words and numbers: its paper, its order, its calls, every level it visits."""
from __future__ import annotations

from typing import NamedTuple

from minisd.samplers.loop import sample
from minisd.samplers.recipes import Recipe, sampler
from minisd.samplers.schedule import CLEAN, NoiseTable


class Source(NamedTuple):
    """Where a method comes from, and by what power of the step its error falls."""
    paper: str
    order: str


_DDPM = "Ho et al., Denoising Diffusion Probabilistic Models, arXiv 2006.11239"
_EDM = "Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364"
_DPM = "Lu et al., DPM-Solver, arXiv 2206.00927"
_DPMPP = "Lu et al., DPM-Solver++, arXiv 2211.01095"
_DEIS = "Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, arXiv 2204.13902"
_UNIPC = "Zhao et al., UniPC, arXiv 2302.04867"
_KD = "as in k-diffusion"
_SDE = "1 (SDE)"

# By the name that a method shows.
SOURCES = {
    "Euler": Source(_EDM, "1"),
    "Euler a": Source(f"{_DDPM}; {_KD}", _SDE),
    "Heun": Source(_EDM, "2"),
    "LMS": Source(f"Adams and Bashforth's multistep method over sigma; {_KD}", "4"),
    "DPM2": Source(f"{_DPM}; {_KD}", "2"),
    "DPM2 a": Source(f"{_DPM}; {_KD}", _SDE),
    "DDIM": Source("Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502", "1"),
    "DDPM": Source(_DDPM, _SDE),
    "PLMS": Source("Liu et al., Pseudo Numerical Methods for Diffusion Models on Manifolds, arXiv 2202.09778", "2"),
    "DPM-Solver": Source(_DPM, "2"),
    "DPM-Solver 3M": Source(_DPM, "3"),
    "DPM-Solver 2S": Source(_DPM, "2"),
    "DPM-Solver 3S": Source(_DPM, "3"),
    "DPM fast": Source(f"{_DPM}; {_KD}", "3"),
    "DPM adaptive": Source(f"{_DPM}; {_KD}", "3"),
    "DPM++ 2M": Source(_DPMPP, "2"),
    "DPM++ 3M": Source(_DPMPP, "3"),
    "DPM++ 2S": Source(_DPMPP, "2"),
    "DPM++ 3S": Source(_DPMPP, "3"),
    "DPM++ 2S a": Source(f"{_DPMPP}; {_KD}", _SDE),
    "DPM++ SDE": Source(f"{_DPMPP}; {_KD}", _SDE),
    "DPM++ 2M SDE": Source(f"{_DPMPP}; {_KD}", _SDE),
    "DPM++ 2M SDE Heun": Source(f"{_DPMPP}; {_KD}", _SDE),
    "DPM++ 3M SDE": Source(f"{_DPMPP}; {_KD}", _SDE),
    "UniPC": Source(_UNIPC, "3"),
    "UniPC bh1": Source(_UNIPC, "3"),
    "UniPC 3": Source(_UNIPC, "4"),
    "DEIS": Source(_DEIS, "2"),
    "DEIS 3": Source(_DEIS, "3"),
    "LCM": Source("Luo et al., Latent Consistency Models, arXiv 2310.04378", "none: for networks distilled to jump"),
    "TCD": Source("Zheng et al., Trajectory Consistency Distillation, arXiv 2402.19159",
                  "none: for networks distilled to jump"),
}
NOISE = {"fresh": "a fresh draw per step", "brownian": "one Brownian path, the same for any number of steps"}


def adds_noise(recipe: Recipe) -> bool:
    """Whether a method asks for noise on its way: seen on a walk of three steps over plain numbers."""
    if recipe.adaptive:
        return False
    asked: list[object] = []
    table = NoiseTable()

    def noise(*way: object) -> float:
        asked.append(way)
        return 0.0

    sample(recipe.solver, lambda x, level: 0.5, 1.0, recipe.schedule(table, 3), table,   # type: ignore[arg-type]
           noise=noise)                           # type: ignore[arg-type]
    return bool(asked)


def sampler_info(name: str, steps: int, table: NoiseTable) -> str:
    """Lines for a reader: the method, then its n + 1 levels on this table; MinisdError for what there is not."""
    recipe = sampler(name)
    schedule, source = recipe.schedule(table, steps), SOURCES[recipe.display]
    least = "at least " if recipe.adaptive else ""
    end = "sigma 0" if schedule[-1] == CLEAN else "the first trained level"
    lines = [f"{recipe.display}, {recipe.schedule_type}: {steps} steps, {least}{recipe.calls(table, steps)} calls",
             f"  paper    {source.paper}",
             f"  order    {source.order}",
             f"  spacing  {recipe.schedule_type}, from t = {schedule[0].t:g} of {table.steps - 1} to {end}",
             f"  noise    {NOISE[recipe.noise] if adds_noise(recipe) else 'none on the way'}"]
    if recipe.adaptive:
        lines.append("  steps    of its own, as long as the error allows: these levels are the ends of the walk only")
    lines.append("  step       sigma         t")
    lines += [f"  {n:4d}  {level.sigma:10.4f}  {level.t:8.3f}" for n, level in enumerate(schedule[:-1], start=1)]
    return "\n".join([*lines, f"   end  {schedule[-1].sigma:10.4f}  {schedule[-1].t:8.3f}"])
