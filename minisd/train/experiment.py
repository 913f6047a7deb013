"""An experiment of distillation as one TOML file states it: the teacher, what is cut out of it, and how that learns.

All that can be wrong with the numbers is found here, before torch is imported. A table `embedded` states what differs
when the teacher is the embedded model, so that one file serves a real checkpoint and the miniature.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from minisd import schema
from minisd.errors import MinisdError
from minisd.train.config import DataConfig, Preview, TrainConfig, within

RECIPES = Path(__file__).parents[1] / "recipes"
EMBEDDED = "emoji"                                # the model that stands in where no checkpoint is given
OVERLAY = "embedded"


@dataclass(frozen=True)
class Student:
    """What is left of the teacher's UNet, and where its first weights come from."""

    remove: tuple[str, ...] = ("midless",)        # cuts or short words for several, see `minisd.surgery`
    start: str = ""                               # a run beside this one, or one of its checkpoints; "" = teacher


@dataclass(frozen=True)
class DistillTask:
    """L = noise * MSE(student, noise) + output * MSE(student, teacher) + features * sum of MSE at paired sites."""

    noise: float = 1.0                            # weights of the three terms; a term of weight 0 is not computed
    output: float = 1.0
    features: float = 1.0
    noise_last: float | None = None               # the weight that is reached, in a line, at the last step
    output_last: float | None = None
    features_last: float | None = None
    normalised: bool = False                      # each pair's error in units of the teacher's mean square
    pairs: dict[str, str] = field(default_factory=dict)  # student's site -> teacher's; none = every stage's, as BK-SDM
    empty_captions: float = 0.0                   # probability of no words
    random_captions: float | None = None          # lambda of Random Conditioning (arXiv 2504.02011); the paper has 5
    images: Literal["data", "teacher"] = "data"   # whose latents: of the data's pictures, or drawn by the teacher
    teacher_dtype: Literal["bf16", "fp32"] = "bf16"

    def __post_init__(self) -> None:
        weights = ("noise", "output", "features", "noise_last", "output_last", "features_last")
        for name in (*weights, "random_captions"):
            value = getattr(self, name)
            within(name, 0.0 if value is None else value, 0)
        within("empty_captions", self.empty_captions, 0, 1)
        if not any(getattr(self, name) for name in weights):
            raise ValueError("noise, output and features are all 0: there is nothing to learn from")

    def weight(self, term: str, step: int, steps: int) -> float:
        """Of a term at a step of so many."""
        first, last = {"noise": (self.noise, self.noise_last), "output": (self.output, self.output_last),
                       "features": (self.features, self.features_last)}[term]
        return first if last is None else first + (last - first) * min(step / max(steps - 1, 1), 1.0)

    def terms(self) -> tuple[str, ...]:
        """The terms that are computed: those that have a weight at any step."""
        return tuple(term for term in ("noise", "output", "features")
                     if self.weight(term, 0, 2) or self.weight(term, 1, 2))


@dataclass(frozen=True)
class Experiment:
    """A teacher, a student, and one run of the loop."""

    name: str
    teacher: str = EMBEDDED                       # an embedded model's name, a model folder, or a checkpoint file
    student: Student = field(default_factory=Student)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillTask = field(default_factory=DistillTask)
    preview: Preview = field(default_factory=Preview)
    seed: int = 0

    def __post_init__(self) -> None:
        within("seed", self.seed, 0, 2 ** 64 - 1)
        if self.data.crop:
            raise ValueError("latents are made of whole pictures, leave crop out")


def find(recipe: str) -> Path:
    """A recipe's file: a path, or the name of one that minisd ships."""
    path, shipped = Path(recipe), RECIPES / f"{recipe}.toml"
    if path.is_file() or not shipped.is_file():
        return path
    return shipped


def read(recipe: str, teacher: str | None = None) -> Experiment:
    """An experiment with its teacher decided, and what its file says of the embedded model applied or left out."""
    path = find(recipe)
    if not path.is_file():
        names = ", ".join(sorted(one.stem for one in RECIPES.glob("*.toml") if is_experiment(one)))
        raise MinisdError("no such recipe", recipe, f"shipped are {names}", "name one of these, or a file")
    data = schema.parsed(path)
    data = dict(data) if isinstance(data, dict) else {}
    overlay = data.pop(OVERLAY, {})
    data["teacher"] = teacher or data.get("teacher", EMBEDDED)
    return schema.read(Experiment, merged(data, overlay) if data["teacher"] == EMBEDDED else data, str(path))


def is_experiment(path: Path) -> bool:
    return "student" in schema.parsed(path)


def merged(data: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Tables within tables; what the overlay states replaces what is there."""
    both = {name: merged(data[name], value) if isinstance(value, dict) and isinstance(data.get(name), dict) else value
            for name, value in overlay.items()}
    return {**data, **both}
