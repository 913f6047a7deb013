"""Which samplers are compared and how, checked before anything is loaded and without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from minisd.command import given, shown
from minisd.drawing.plan import GUIDANCE, SEEDS, STEPS, in_range
from minisd.errors import USAGE, MinisdError
from minisd.files import vacant
from minisd.samplers.info import adds_noise
from minisd.samplers.recipes import METHODS, sampler

TABLE, CSV, CURVES = "samplers.json", "samplers.csv", "samplers.png"
FIXED = tuple(method.names[0] for method in METHODS if not method.adaptive)


@dataclass(frozen=True)
class SamplersOptions:
    """Compare samplers: how near each comes to where it is going, for how many calls of the network."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """An embedded model's name, or a model folder."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Where samplers.json, .csv and .png go; a folder that holds them is refused."""
    prompts: Annotated[tuple[str, ...], arg(metavar="PROMPT")] = ("a red apple", "a cat", "a house", "a sailing boat")
    """What is drawn with every sampler, each in its own quotes."""
    samplers: Annotated[tuple[str, ...], arg(metavar="NAME", help_behavior_hint="(default: every method)")] = FIXED
    """Their names, with or without a spacing, each in its own quotes."""
    steps: Annotated[tuple[int, ...], arg(metavar="1..1000")] = (5, 10, 20, 40, 80)
    """Numbers of steps to try."""
    reference: Annotated[str, arg(metavar="NAME")] = "dpm++2m karras"
    """The sampler of the converged picture of methods that add no noise."""
    reference_steps: Annotated[int, arg(metavar="1..1000")] = 200
    """Its steps; and those of a converged picture of each method on Brownian noise, by itself."""
    cfg: Annotated[float | None, given(float, "0..100"), shown("the model's own", "--guidance-scale")] = None
    """How strictly to follow the prompt; 1 is no guidance."""
    seed: Annotated[int, arg(metavar="0..2^64-1")] = 0
    """Seed of the first prompt's picture; the next ones count up."""
    device: Annotated[str, arg(metavar="auto|cpu|cuda")] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "float32"
    """Precision of the drawing."""
    debug: bool = False
    """Show the traceback of an error."""

    def check(self) -> None:
        """Refuse what is out of range or cannot be compared, and a folder that holds a comparison."""
        for steps in self.steps:
            in_range("steps", steps, *STEPS)
        in_range("reference-steps", self.reference_steps, *STEPS)
        in_range("seed", self.seed, 0, SEEDS - 1 - len(self.prompts))
        in_range("cfg", 1.0 if self.cfg is None else self.cfg, *GUIDANCE)
        for option in ("prompts", "samplers", "steps"):
            if not vars(self)[option]:
                raise MinisdError(f"--{option} names nothing", remedy="name at least one", code=USAGE)
        for name in (*self.samplers, self.reference):
            if sampler(name).adaptive:
                raise MinisdError(f"sampler {name} takes steps of its own", "--samplers",
                                  "its calls depend on the picture, so that it has no place in a table by steps",
                                  "leave it out", USAGE)
        if adds_noise(sampler(self.reference)):
            raise MinisdError(f"sampler {self.reference} adds noise", "--reference",
                              "methods that add none do not converge to its picture", "name another", USAGE)
        vacant(self.out, (TABLE, CSV, CURVES), "a comparison of samplers")
