"""What is drawn exactly and approximately, checked before anything is loaded and without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from minisd.command import given, shown
from minisd.drawing.control import EXACT, PLAIN, Guide, Shortcuts
from minisd.drawing.plan import GUIDANCE, SEEDS, STEPS, in_range
from minisd.errors import USAGE, MinisdError
from minisd.files import vacant
from minisd.samplers.recipes import sampler

TABLE, SHEET = "approximations.json", "approximations.png"
COUNTS, BATCHES = (2, 1000), (1, 64)
INTERVAL = (0.28, 5.42)                           # in sigma: Kynkäänniemi et al. (arXiv 2404.07724), table 1, SD-XL


@dataclass(frozen=True)
class Way:
    """One way of drawing, beside the exact one in float32."""

    name: str
    shortcuts: Shortcuts = EXACT
    guide: Guide = PLAIN
    dtype: str = "float32"


WAYS = (Way("reuse 2", Shortcuts(2)), Way("reuse 3", Shortcuts(3)), Way("reuse 5", Shortcuts(5)),
        Way("merge 25 %", Shortcuts(merge=0.25)), Way("merge 50 %", Shortcuts(merge=0.5)),
        Way("guidance interval", guide=Guide(interval=INTERVAL)),
        Way("bfloat16", dtype="bfloat16"), Way("int8", dtype="int8"))
PROMPTS = ("a red apple", "a cat", "a house", "a sailing boat", "a yellow star", "a green tree", "a smiling face",
           "a blue car")


@dataclass(frozen=True)
class ApproximationsOptions:
    """Draw the same pictures exactly and in each approximate way: how much faster, how much of them is lost."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """An embedded model's name, or a model folder."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Where approximations.json and .png go; a folder that holds them is refused."""
    prompts: Annotated[tuple[str, ...], arg(metavar="PROMPT")] = PROMPTS
    """What is drawn, each in its own quotes."""
    count: Annotated[int, arg(metavar="2..1000")] = 8
    """Pictures of each prompt."""
    judge: Annotated[str | None, given(str, "NAME|FOLDER"), shown("the model itself")] = None
    """The model whose CLIP says how well pictures fit their prompts."""
    steps: Annotated[int | None, given(int, "1..1000"), shown("the model's own")] = None
    """Steps from noise to picture."""
    cfg: Annotated[float | None, given(float, "0..100"), shown("the model's own", "--guidance-scale")] = None
    """How strictly to follow the prompt; 1 is no guidance."""
    sampler: Annotated[str | None, given(str, "NAME"), shown("the model's own")] = None
    """Such as "euler", "ddim", "dpm++2m karras"."""
    seed: Annotated[int, arg(metavar="0..2^64-1")] = 0
    """Seed of each prompt's first picture; the next ones count up."""
    batch: Annotated[int, arg(metavar="1..64")] = 8
    """Pictures drawn together."""
    device: Annotated[str, arg(metavar="auto|cpu|cuda")] = "auto"
    """Where to compute."""
    debug: bool = False
    """Show the traceback of an error."""

    def check(self) -> None:
        """Refuse what is out of range, and a folder that holds such a table."""
        in_range("count", self.count, *COUNTS)
        in_range("batch", self.batch, *BATCHES)
        in_range("seed", self.seed, 0, SEEDS - self.count)
        in_range("steps", 1 if self.steps is None else self.steps, *STEPS)
        in_range("cfg", 1.0 if self.cfg is None else self.cfg, *GUIDANCE)
        if self.sampler is not None:
            sampler(self.sampler)                 # refuses a name that is none
        if not self.prompts:
            raise MinisdError("--prompts names nothing", remedy="name at least one", code=USAGE)
        vacant(self.out, (TABLE, SHEET), "a table of approximations")
