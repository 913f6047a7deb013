"""Pictures and captions in an order that depends on the sample number alone.

Sample n of a run is row `order(n)` of its epoch's permutation, whoever asks and whenever.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.clip import TextStates
from minisd.errors import MinisdError
from minisd.images import open_picture
from minisd.train.buckets import Bucket, assigned, fitted, shown_size, sizes
from minisd.train.config import MULTIPLE, DataConfig
from minisd.train.draws import Purpose, stream
from minisd.train.plan import Plan
from minisd.train.rows import Row, read_rows
from minisd.vae import Posterior

log = logging.getLogger(__name__)

MEMORY = 1 << 30                                  # bytes of decoded pictures kept; beyond, they are read again


@dataclass
class Batch:
    """Samples of one forward pass; a data source fills what its task asks for."""

    rows: list[Row]
    captions: list[str]
    pixels: Tensor | None = None                  # [b, 3, size, size] in [-1, 1]
    latents: Posterior | None = None              # of the pictures' latents, unscaled
    states: TextStates | None = None              # of the captions
    mask: Tensor | None = None                    # [b, 1, h, w] how much each latent counts
    prior: "Batch | None" = None                  # as many class pictures, where prior preservation is asked for


class Sample(NamedTuple):
    """A row, what was read of its picture, the chosen caption, and the random numbers left to it."""

    row: Row
    value: Tensor
    caption: str
    draws: np.random.Generator


@dataclass
class Pictures:
    """The rows of one split, and the samples made of them."""

    folder: Path
    cfg: DataConfig
    seed: int
    split: str = "train"
    together: int = 1                             # samples in a row that have one size, where there are buckets
    broken: dict[Path, str] = field(default_factory=dict)
    decoded: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.rows = read_rows(self.folder, self.cfg, self.split)
        if not self.rows:
            raise MinisdError(f"no {self.split} pictures", str(self.folder), f"no row fits {self.cfg}",
                              "name other styles, or leave core_only out")
        self.buckets: dict[Path, Bucket] = {}
        self.plan = self.planned() if self.cfg.buckets > 1 else None

    def planned(self) -> Plan:
        """The rows by bucket, and their order."""
        choice, groups = sizes(self.cfg.size, MULTIPLE, self.cfg.buckets), dict[Bucket, list[int]]()
        for place, row in enumerate(self.rows):
            try:
                self.buckets[row.path] = assigned(shown_size(row.source()), choice)
                groups.setdefault(self.buckets[row.path], []).append(place)
            except MinisdError as fault:
                self.leave_out(row, fault.why)
        if not groups:
            raise self.all_broken()
        return Plan(self.seed, tuple(tuple(group) for _, group in sorted(groups.items())), self.together)

    def order(self, n: int) -> int:
        """Row of sample n: a permutation per epoch, the same for every run with this seed."""
        if self.plan is not None:
            return self.plan.order(n)
        epoch, place = divmod(n, len(self.rows))
        return int(permutation(self.seed, epoch, len(self.rows))[place])

    def batch(self, numbers: list[int]) -> Batch:
        """The samples of these numbers."""
        samples = [self.sample(n, self.decode) for n in numbers]
        pixels = torch.stack([self.crop(one.value, one.draws) for one in samples]).float() / 127.5 - 1
        return Batch([one.row for one in samples], [one.caption for one in samples], pixels)

    def sample(self, n: int, read: Callable[[Row, bool], Tensor]) -> Sample:
        """Sample n, its picture read in whatever form, mirrored or not; a function of n and the files, not of what
        came before."""
        draws = stream(self.seed, n, Purpose.DATA)
        mirrored = self.cfg.flip and draws.random() < 0.5
        row, value = self.first_whole(self.order(n), lambda one: read(one, mirrored))
        return Sample(row, value, self.caption(row, draws), draws)

    def first_whole(self, index: int, read: Callable[[Row], Tensor]) -> tuple[Row, Tensor]:
        """A row that can be read: a broken one is replaced by the next whole one, of its size where there are several,
        so the others keep their place."""
        count = len(self.rows)
        following = ((index + step) % count for step in range(count))
        for place in following if self.plan is None else self.plan.neighbours(index):
            row = self.rows[place]
            if row.path in self.broken:
                continue
            try:
                return row, read(row)
            except MinisdError as fault:
                self.leave_out(row, fault.why)
        raise self.all_broken()

    def leave_out(self, row: Row, why: str) -> None:
        self.broken[row.path] = why
        log.warning("%s: %s; another picture takes its place (%d broken so far)", row.path, why, len(self.broken))

    def all_broken(self) -> MinisdError:
        return MinisdError("every picture is broken", str(self.folder), "none could be opened", "check the folder")

    def decode(self, row: Row, mirrored: bool) -> Tensor:
        """A picture as `opened`, or its mirror image."""
        return self.picture(row).flip(2) if mirrored else self.picture(row)

    def picture(self, row: Row) -> Tensor:
        """A picture as `opened`, kept in memory while there is room."""
        if row.path not in self.decoded:
            pixels = self.opened(row)
            if len(self.decoded) * pixels.numel() > MEMORY:
                return pixels
            self.decoded[row.path] = pixels
        return self.decoded[row.path]

    def opened(self, row: Row) -> Tensor:
        """uint8 [3, size, size]: centre square, resized; or [3, height, width] of its bucket."""
        return self.fit(row, open_picture(row.source()))

    def fit(self, row: Row, picture: Image.Image) -> Tensor:
        """A picture as large as the row's is made."""
        return fitted(picture, self.buckets[row.path]) if self.plan is not None else square(picture, self.cfg.size)

    def shape(self, row: Row) -> str:
        """What `opened` makes of a row, in words."""
        return f"bucket {self.buckets[row.path]}" if self.plan is not None else f"size {self.cfg.size}"

    def crop(self, picture: Tensor, draws: np.random.Generator) -> Tensor:
        """A random square of the picture where the config asks for one."""
        size, crop = self.cfg.size, self.cfg.crop
        if not crop or crop == size:
            return picture
        top, left = (int(v) for v in draws.integers(0, size - crop + 1, 2))
        return picture[:, top:top + crop, left:left + crop]

    def caption(self, row: Row, draws: np.random.Generator) -> str:
        """The plain caption with its probability, else any of the others."""
        if len(row.captions) == 1 or draws.random() < self.cfg.plain_captions:
            return row.captions[0]
        return row.captions[1 + int(draws.integers(len(row.captions) - 1))]


def unseen(folder: Path, cfg: DataConfig, seed: int) -> Pictures:
    """The pictures that are measured: held-out ones where there are any, square, whole and with plain captions."""
    plain = replace(cfg, crop=0, flip=False, buckets=1.0, plain_captions=1.0)
    return Pictures(folder, plain, seed, "holdout" if read_rows(folder, plain, "holdout") else "train")


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return stream(seed, epoch, Purpose.ORDER).permutation(count)


def square(picture: Image.Image, size: int) -> Tensor:
    """The centre square of an RGB picture, resized by Lanczos: uint8 [3, size, size]."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    pixels = np.array(picture.resize((size, size), Image.Resampling.LANCZOS, box=box))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
