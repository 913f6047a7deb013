"""Pictures and captions of a folder in an order that depends on the sample number alone.

A folder holds `metadata.jsonl`, one row per picture: {"file", "captions" or "text", and optionally "style",
"concept", "core", "split"}. Sample n of a run is row `order(n)` of its epoch's permutation, whoever asks and whenever.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.clip import TextStates
from minisd.errors import MinisdError
from minisd.images import open_picture
from minisd.train.config import DataConfig
from minisd.train.draws import Purpose, stream
from minisd.vae import Posterior

MEMORY = 1 << 30                                  # bytes of decoded pictures kept; beyond, they are read again


@dataclass(frozen=True)
class Row:
    """One picture with all its captions, the plainest first."""

    path: Path
    captions: tuple[str, ...]
    style: str = ""
    concept: str = ""

    @cached_property
    def digest(self) -> str:
        """sha256 of the file's bytes: what caches are keyed by, so that an edited picture is encoded anew."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@dataclass
class Batch:
    """Samples of one forward pass; a data source fills what its task asks for."""

    rows: list[Row]
    captions: list[str]
    pixels: Tensor | None = None                  # [b, 3, size, size] in [-1, 1]
    latents: Posterior | None = None              # of the pictures' latents, unscaled
    states: TextStates | None = None              # of the captions


def read_rows(folder: Path, cfg: DataConfig, split: str) -> list[Row]:
    """The rows of a folder that the config and the split select."""
    index = folder / "metadata.jsonl"
    if not index.is_file():
        raise MinisdError("no picture-caption folder", str(folder), "metadata.jsonl is missing",
                          "name a folder with metadata.jsonl: one JSON object per line with file and captions")
    rows = []
    for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            captions = tuple(entry["captions"]) if "captions" in entry else (entry["text"],)
            row = Row(folder / entry["file"], captions, entry.get("style", ""), entry.get("concept", ""))
        except (ValueError, KeyError, TypeError) as fault:
            raise MinisdError("a broken row", f"{index}:{number}", repr(fault), "correct or delete the line") from fault
        chosen = not cfg.styles or row.style in cfg.styles
        if chosen and entry.get("split", "train") == split and (entry.get("core", True) or not cfg.core_only):
            rows.append(row)
    return rows


@dataclass
class Pictures:
    """The rows of one split, and the samples made of them."""

    folder: Path
    cfg: DataConfig
    seed: int
    split: str = "train"
    broken: dict[Path, str] = field(default_factory=dict)
    decoded: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.rows = read_rows(self.folder, self.cfg, self.split)
        if not self.rows:
            raise MinisdError(f"no {self.split} pictures", str(self.folder), f"no row fits {self.cfg}",
                              "name other styles, or leave core_only out")

    def order(self, n: int) -> int:
        """Row of sample n: a permutation per epoch, the same for every run with this seed."""
        epoch, place = divmod(n, len(self.rows))
        return int(permutation(self.seed, epoch, len(self.rows))[place])

    def batch(self, numbers: list[int], pixels: bool = True) -> Batch:
        """The samples of these numbers."""
        rows, captions, pictures = [], [], []
        for n in numbers:
            draws = stream(self.seed, n, Purpose.DATA)
            row, picture = self.whole(self.order(n), decode=pixels)
            rows.append(row)
            captions.append(self.caption(row, draws))
            if picture is not None:
                pictures.append(self.crop(picture, draws))
        return Batch(rows, captions, torch.stack(pictures).float() / 127.5 - 1 if pixels else None)

    def whole(self, index: int, decode: bool) -> tuple[Row, Tensor | None]:
        """A row and its picture; a broken one is replaced by the next that opens, so the others keep their place."""
        for step in range(len(self.rows)):
            row = self.rows[(index + step) % len(self.rows)]
            if row.path in self.broken:
                continue
            try:
                return row, self.picture(row.path) if decode else None
            except MinisdError as fault:
                self.broken[row.path] = fault.why
        raise MinisdError("every picture is broken", str(self.folder), "none could be opened", "check the folder")

    def picture(self, path: Path) -> Tensor:
        """uint8 [3, size, size]: centre square, resized."""
        if path not in self.decoded:
            pixels = square(open_picture(path), self.cfg.size)
            if len(self.decoded) * pixels.numel() > MEMORY:
                return pixels
            self.decoded[path] = pixels
        return self.decoded[path]

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
