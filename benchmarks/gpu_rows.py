"""What `gpu.py` measures, with the goals, and the table of what came out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from gpu_drawing import COMPILED
from gpu_training import DISTILLATION, FINETUNING
from measure import OURS, THEIRS
from meter import GIB

ALLOWED = {"float16": 0.02, "bfloat16": 0.1, "float32": 1e-3}   # of the outputs' deviation: rounding in another order
STEP, PICTURE = "step", "picture"


@dataclass(frozen=True)
class Row:
    """One thing that is measured; `goals` by contestant, on an H200."""

    name: str
    job: str
    count: int                                        # pictures together, or steps of one
    few: int                                          # of `--quick`
    unit: str
    goals: dict[str, float] = field(default_factory=dict)

    def value(self, seconds: float, count: int) -> float:
        """Steps a second, pictures a second, or seconds."""
        return {"it/s": 1 / seconds, "img/s": count / seconds, "s": seconds}[self.unit]


ROWS = (
    Row("UNet, guided, 1 picture", STEP, 1, 1, "it/s", {OURS: 60, COMPILED: 110}),
    Row("UNet, guided, 4 pictures", STEP, 4, 2, "it/s"),
    Row("UNet, guided, 16 pictures", STEP, 16, 3, "it/s"),
    Row("a picture, 20 steps", PICTURE, 20, 1, "s"),
    Row("a picture, 50 steps", PICTURE, 50, 2, "s", {COMPILED: 0.5}),
    Row("distillation, 512 pixels", DISTILLATION, 16, 2, "img/s", {OURS: 40}),
    Row("finetuning, 512 pixels", FINETUNING, 16, 2, "img/s"),
)


@dataclass
class Result:
    """What a row came to, by contestant."""

    row: str
    unit: str
    count: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    goals: dict[str, float] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)  # from diffusers, of outputs that are compared

    def add(self, name: str, seconds: float, peak: int) -> None:
        self.seconds.setdefault(name, []).append(seconds)
        self.peak[name] = max(peak, self.peak.get(name, 0))

    def value(self, name: str) -> float:
        row = next(row for row in ROWS if row.name == self.row)
        return row.value(median(self.seconds[name]), self.count)

    def reached(self, name: str) -> bool:
        value, goal = self.value(name), self.goals[name]
        return value <= goal if self.unit == "s" else value >= goal


# ---------------------------------------------------------------- what came out
def table(results: list[Result]) -> str:
    """A line for each row and contestant, as Markdown."""
    lines = ["| | | | times diffusers | GiB | goal on an H200 | output differs |", "|---|---|---:|---:|---:|---:|---:|"]
    for result in results:
        for name in result.seconds:
            theirs = result.seconds.get(THEIRS)
            faster = f"{median(theirs) / median(result.seconds[name]):.2f}" if theirs else ""
            goal, far = result.goals.get(name), result.difference.get(name)
            lines.append(f"| {result.row} | {name} | {result.value(name):.3g} {result.unit} | {faster} | "
                         f"{result.peak[name] / GIB:.2f} | {'' if goal is None else f'{goal:g} {result.unit}'} | "
                         f"{'' if far is None else f'{far:.1g}'} |")
    return "\n".join(lines)


def verdicts(results: list[Result]) -> Iterator[str]:
    """Each goal, and whether it is reached."""
    for result in results:
        for name, goal in result.goals.items():
            if name in result.seconds:
                yield (f"{'reached' if result.reached(name) else 'NOT reached'}: {result.row}, {name}: "
                       f"{result.value(name):.3g} {result.unit}, goal {goal:g} {result.unit}")
