"""Captions without pictures: those of a picture-caption folder, or the lines of a text file."""

from pathlib import Path

from minisd.errors import USAGE, MinisdError
from minisd.store import find
from minisd.train.config import DataConfig
from minisd.train.rows import read_rows

CAPTIONS = "captions.txt"                         # in a model's folder


def captions_of(path: Path, cfg: DataConfig) -> tuple[list[str], list[str]]:
    """The captions to train on and those to measure by, each once: a folder's plain ones of its two splits, else every
    line of a text file for both."""
    if path.is_dir():
        splits = [list(dict.fromkeys(row.captions[0] for row in read_rows(path, cfg, split)))
                  for split in ("train", "holdout")]
        found, held_out = splits[0], splits[1] or splits[0]
    else:
        found = held_out = lines(path)
    if not found:
        raise MinisdError("no captions", str(path), "none is there, or none fits the recipe's data table",
                          "give a text file with a caption on each line, or a folder of pictures with captions")
    return found, held_out


def beside(model: str) -> Path:
    """The captions that come with a model, for want of data: those that it was trained on."""
    path = find(model) / CAPTIONS
    if not path.is_file():
        raise MinisdError("there is no data", model, f"no {CAPTIONS} comes with this model",
                          "name by --data a folder of pictures with captions, or a text file of captions", USAGE)
    return path


def lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise MinisdError("the captions cannot be read", str(path), str(fault), "give UTF-8 text") from fault
    return list(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))
