"""Tar shards of pictures and captions: `name.png` beside `name.txt`, or `name.json` with the entries of metadata.jsonl.

Members are found once by reading the headers, and read where they lie: nothing is unpacked.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from minisd.errors import MinisdError

SUFFIX = ".tar"
LARGEST = 1 << 20                                 # bytes of a caption's file


class Member(NamedTuple):
    """A file within a shard: where its bytes lie."""

    shard: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read())


def shards(folder: Path) -> list[Path]:
    """The tar files of a folder by name."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def members(shard: Path) -> dict[str, Member]:
    """The plain files of a shard by their names; links and the like are left out, and so are compressed shards."""
    try:
        with tarfile.open(shard, "r:") as file:
            return {entry.name: Member(shard, entry.name, entry.offset_data, entry.size)
                    for entry in file if entry.isreg()}
    except (tarfile.TarError, OSError, EOFError) as fault:
        raise MinisdError("the shard cannot be read", str(shard), str(fault)[:200], "make or copy it again") from fault


def entries(shard: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Member, dict[str, Any]]]:
    """Every picture of a shard, in its order, and what stands beside it; without a file beside it, no words."""
    found = members(shard)
    for name, member in found.items():
        path = PurePosixPath(name)
        if path.suffix.lower() in suffixes:
            yield member, beside(found, path)


def beside(found: dict[str, Member], picture: PurePosixPath) -> dict[str, Any]:
    """The entry of a picture: the object of its .json, else the words of its .txt."""
    told, words = (found.get(str(picture.with_suffix(suffix))) for suffix in (".json", ".txt"))
    member = told or words
    if member is None:
        return {"text": ""}
    if member.size > LARGEST:
        raise MinisdError("a caption's file is too large", f"{member.shard}:{member.name}", f"{member.size:,} bytes",
                          f"give at most {LARGEST:,}")
    text = member.read().decode("utf-8-sig", "replace")
    if told is None:
        return {"text": text.strip()}
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as fault:
        raise MinisdError("a broken row", f"{told.shard}:{told.name}", str(fault), "give a JSON object") from fault
