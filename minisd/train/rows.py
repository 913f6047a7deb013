"""The rows of a picture-caption folder: which picture has which captions.

A folder holds `metadata.jsonl`, one row per picture: {"file" or "file_name", "captions" or "text", and optionally
"style", "concept", "core", "split"}. Without it the folder may hold tar shards; else every picture is a row, and x.txt
beside x.png its caption and x.mask.png its mask.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from minisd.errors import MinisdError
from minisd.train.config import DataConfig
from minisd.train.shards import Member, entries, shards
from minisd.train.wording import reworded

INDEX = "metadata.jsonl"
MASK = ".mask.png"                                # after the name of the picture whose mask it is
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


@dataclass(frozen=True)
class Row:
    """One picture with all its captions, the plainest first."""

    path: Path
    captions: tuple[str, ...]
    style: str = ""
    concept: str = ""
    split: str = "train"
    core: bool = True
    member: Member | None = None                  # where it lies in a shard; `path` is then the shard's with its name

    def source(self) -> Path | BinaryIO:
        """What the picture is opened from."""
        return self.path if self.member is None else self.member.open()

    @cached_property
    def digest(self) -> str:
        """sha256 of the file's bytes: what caches are keyed by, so that an edited picture is encoded anew."""
        try:
            data = self.path.read_bytes() if self.member is None else self.member.read()
            return hashlib.sha256(data).hexdigest()
        except OSError as fault:
            raise MinisdError("the picture cannot be read", str(self.path), fault.strerror or str(fault)) from fault


def read_rows(folder: Path, cfg: DataConfig, split: str) -> list[Row]:
    """The rows of a folder that the config and the split select."""
    if (folder / INDEX).is_file():
        rows = indexed(folder)
    else:
        rows = sharded(folder) if shards(folder) else captioned(folder)
    return [replace(row, captions=reworded(row.captions, cfg)) for row in rows if row.split == split
            and (not cfg.styles or row.style in cfg.styles) and (row.core or not cfg.core_only)]


def indexed(folder: Path) -> list[Row]:
    """The rows that metadata.jsonl lists."""
    index, rows = folder / INDEX, []
    try:
        lines = index.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut at U+2028, too
    except (OSError, UnicodeDecodeError) as fault:
        raise MinisdError(f"{INDEX} cannot be read", str(index), str(fault), "give UTF-8 text") from fault
    for number, line in enumerate(lines, start=1):
        try:
            rows += [as_row(json.loads(line), folder)] if line.strip() else []
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            why = f"no entry {fault}" if isinstance(fault, KeyError) else str(fault)
            raise MinisdError("a broken row", f"{index}:{number}", why, "correct or delete the line") from fault
    return rows


def sharded(folder: Path) -> list[Row]:
    """The pictures of the folder's tar shards, in their order."""
    rows = []
    for shard in shards(folder):
        for member, entry in entries(shard, SUFFIXES):
            try:
                rows.append(replace(as_row({**entry, "file_name": member.name}, shard), member=member))
            except (ValueError, KeyError, TypeError, AttributeError) as fault:
                why = f"no entry {fault}" if isinstance(fault, KeyError) else str(fault)
                raise MinisdError("a broken row", f"{shard}:{member.name}", why, "correct its .json") from fault
    return rows


def as_row(entry: dict[str, Any], folder: Path) -> Row:
    """One line of the index. Its captions are a list of strings, or one string as `text`."""
    file = entry["file_name"] if "file_name" in entry else entry["file"]
    captions = entry["captions"] if "captions" in entry else [entry["text"]]
    if not isinstance(captions, list) or not captions or not all(isinstance(one, str) for one in captions):
        raise ValueError(f"captions {captions!r}: give a list of at least one string")
    return Row(folder / file, tuple(captions), entry.get("style", ""), entry.get("concept", ""),
               entry.get("split", "train"), entry.get("core", True))


def captioned(folder: Path) -> list[Row]:
    """The pictures of a folder by name, captions in text files beside them; without a file, no words."""
    found = sorted(path for path in folder.glob("*")
                   if path.suffix.lower() in SUFFIXES and not path.name.endswith(MASK))
    if not found:
        raise MinisdError("no picture-caption folder", str(folder), f"it holds neither {INDEX} nor pictures",
                          f"name a folder with {INDEX}: one JSON object per line with file and captions")
    texts = [path.with_suffix(".txt") for path in found]
    words = [text.read_text(encoding="utf-8-sig", errors="replace").strip() if text.is_file() else "" for text in texts]
    return [Row(path, (caption,)) for path, caption in zip(found, words, strict=True)]
