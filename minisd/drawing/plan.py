"""All that decides a picture, checked before anything is loaded: this file and what it imports need no torch."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from minisd.drawing.control import (
    EXACT,
    PLAIN,
    STILL,
    Fresh,
    Guide,
    Hires,
    Mask,
    Shortcuts,
    Start,
    Walk,
    larger,
    skipped,
)
from minisd.drawing.ranges import GUIDANCE, SEEDS, STEPS, check_side, in_range
from minisd.drawing.tags import EMBEDDING, Embedding, Lora, check_alone
from minisd.errors import USAGE, MinisdError
from minisd.samplers.churn import Churn
from minisd.samplers.recipes import Recipe, sampler


@dataclass(frozen=True)
class Defaults:
    """What a model likes best, for whatever the user leaves open; `config.json` may state its own."""

    steps: int = 20
    guidance: float = 7.5
    sampler: str = "dpm++2m karras"


STANDARD = Defaults()                             # of a model that states none: Stable Diffusion's habits


@dataclass(frozen=True)
class Drawing:
    """One picture to be drawn. Values out of range are errors that name the option and what it allows."""

    prompt: str
    negative: str
    steps: int
    guidance: float                               # 1 = none, and the negative prompt goes unread
    sampler: str
    seed: int
    width: int
    height: int
    guide: Guide = PLAIN
    start: Start | None = None
    mask: Mask | None = None
    image_guidance: float | None = None           # of instruct-pix2pix: how strictly to follow the picture
    hires: Hires | None = None
    fresh: Fresh = STILL
    loras: tuple[Lora, ...] = ()                  # in the order in which they are added
    embeddings: tuple[Embedding, ...] = ()        # whose words the prompts say
    shortcuts: Shortcuts = EXACT

    def __post_init__(self) -> None:
        check_alone(self.loras)
        check_alone(self.embeddings, EMBEDDING)
        in_range("steps", self.steps, *STEPS)
        in_range("cfg", self.guidance, *GUIDANCE)
        in_range("seed", self.seed, 0, SEEDS - 1)
        check_side("width", self.width)
        check_side("height", self.height)
        self.recipe()
        if self.image_guidance is not None:
            in_range("image-cfg", self.image_guidance, *GUIDANCE)
        if self.start is None and (self.mask or self.image_guidance is not None):
            raise MinisdError("a mask or --image-cfg, but no picture", remedy="give one by --image", code=USAGE)
        if self.mask and self.image_guidance is not None:
            raise MinisdError("--mask beside --image-cfg", remedy="give one or the other", code=USAGE)
        if self.start and self.hires:
            raise MinisdError("a picture to begin from, and a second walk (hires)",
                              remedy="draw the picture larger by giving its --size", code=USAGE)
        self.walks()

    def recipe(self) -> Recipe:
        """The sampler, with the options of its noise."""
        churn = Churn(self.fresh.churn, self.fresh.low, self.fresh.high or math.inf, self.fresh.noise)
        return sampler(self.sampler, eta=self.fresh.eta, churn=churn if self.fresh.churn else None)

    @property
    def negative_counts(self) -> bool:
        """Whether the negative prompt is read."""
        return self.guidance != 1 or self.image_guidance not in (None, 1)

    @property
    def walked(self) -> int:
        """Steps really taken, in all walks together."""
        return sum(walk.steps - walk.skipped for walk in self.walks())

    def walks(self) -> list[Walk]:
        """One, or two with hires."""
        strength = self.start.strength if self.start else 1.0
        first = Walk(self.width, self.height, self.steps, skipped("strength", self.steps, strength))
        if self.hires is None:
            return [first]
        steps = self.hires.steps or self.steps
        return [first, Walk(larger("width", self.width, self.hires.upscale),
                            larger("height", self.height, self.hires.upscale),
                            steps, skipped("hires-strength", steps, self.hires.strength))]

    def check_pictures(self, given: Collection[str]) -> None:
        """Refuses if a picture it needs is not among those given, all by fingerprint."""
        for option, needed in (("image", self.start), ("mask", self.mask)):
            if needed is not None and needed.sha256 not in given:
                raise MinisdError(f"the drawing needs a picture that is not given: the --{option}", f"--{option}",
                                  f"its pixels have the sha256 {needed.sha256[:10]}…",
                                  f"give the same picture as the first time by --{option}", USAGE)
