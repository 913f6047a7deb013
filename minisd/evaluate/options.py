"""What is evaluated and how, checked before anything is loaded: this file and what it imports need no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from minisd.command import given, shown
from minisd.drawing.plan import Drawing, in_range
from minisd.files import vacant

REPORT = "report.json"
COUNTS, BATCHES = (2, 2_000), (1, 64)
HOW = "the recipe's, else the model's own"


@dataclass(frozen=True)
class Options:
    """Measure a model: its autoencoder on held-out pictures, and what it draws by retrieval and Fréchet distance."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """An embedded model's name, or a model folder."""
    data: Annotated[Path, arg(metavar="FOLDER")]
    """Pictures with metadata.jsonl, some of them held out from training."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Where report.json and the sheets of pictures go; a folder that holds a report is refused."""
    recipe: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The recipe whose preview prompts make the contact sheet; it also says how to draw."""
    judge: Annotated[str | None, given(str, "NAME|FOLDER"), shown("the model itself")] = None
    """The model whose CLIP judges, such as the run in which it was trained."""
    count: Annotated[int, arg(metavar="2..2000")] = 200
    """Concepts that are drawn, and among which is retrieved."""
    steps: Annotated[int | None, given(int, "1..1000"), shown(HOW)] = None
    """Steps from noise to picture."""
    cfg: Annotated[float | None, given(float, "0..100"), shown(HOW, "--guidance", "--guidance-scale")] = None
    """How strictly to follow the prompt; 1 is no guidance."""
    sampler: Annotated[str | None, given(str, "NAME"), shown(HOW)] = None
    """Such as "euler a", "ddim", "pndm", "dpm++2m karras"."""
    seed: Annotated[int, arg(metavar="0..2^64-1")] = 0
    """Seed of the first concept's picture; the next ones count up. The concepts are the same for every seed."""
    batch: Annotated[int, arg(metavar="1..64")] = 8
    """Pictures drawn together."""
    device: Annotated[str, arg(metavar="auto|cpu|cuda")] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the drawing; measures are taken in float32 and float64."""
    debug: bool = False
    """Show the traceback of an error."""

    def check(self) -> None:
        """Refuse what is out of range, and a folder that holds a report."""
        in_range("count", self.count, *COUNTS)
        in_range("batch", self.batch, *BATCHES)
        in_range("seed", self.seed, 0, 2 ** 64 - 1 - self.count)
        Drawing("", "", 1 if self.steps is None else self.steps, 1.0 if self.cfg is None else self.cfg,
                "euler" if self.sampler is None else self.sampler, self.seed, 64, 64)
        vacant(self.out, (REPORT,), "a report")


@dataclass(frozen=True)
class FidelityOptions:
    """Compare a student with its teacher, and with itself untrained: paired, with intervals."""

    teacher: Annotated[str, Positional, arg(metavar="TEACHER")]
    """An embedded model's name, a model folder, or a checkpoint file."""
    student: Annotated[str, Positional, arg(metavar="STUDENT")]
    """Likewise; its UNet must be a part of the teacher's."""
    data: Annotated[Path, arg(metavar="FOLDER")]
    """Pictures with captions; the held-out ones where there are any."""
    samples: int = 256
    """Noised pictures that both are asked about; their timesteps are spread evenly."""
    pictures: int = 32
    """Pictures that both draw from the same words and seeds; 0 = none."""
    cache: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/cache")
    """Latents and text states that were computed once."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Write figures and protocol as JSON, too."""
    debug: bool = False
    """Show the traceback of an error."""
