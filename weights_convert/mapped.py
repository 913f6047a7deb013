"""A file as memory: checked to be a plain file, mapped without a copy, and handed out as tensors that lie in it.

Maps of tensors are private: writing into a tensor changes no file. A file that somebody truncates while it is mapped
ends the process by a signal when the lost part is touched: `Seen.check_unchanged` tells in time, and `copy=True` reads
everything first.
"""

import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from itertools import accumulate, groupby
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from minisd.errors import BAD_FILE, RESOURCE, MinisdError

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
         stat.S_IFSOCK: "a socket"}
CHUNK, WINDOW = 2 ** 24, 2 ** 28
LONGEST_SHOWN = 80
T = TypeVar("T")


class Seen(NamedTuple):
    """A file as it was when it was opened."""

    path: Path
    size: int
    mark: tuple[int, ...]                          # what changes when it is written to or replaced

    @classmethod
    def now(cls, path: Path, status: os.stat_result) -> "Seen":
        return cls(path, status.st_size, (status.st_mtime_ns, status.st_ino, status.st_dev))

    def check_unchanged(self) -> None:
        """Stops if the file was written to or replaced since: what was made from it then is not to be kept."""
        try:
            now = Seen.now(self.path, self.path.stat())
        except OSError as error:
            raise refused(self.path, "the file vanished while it was in use", str(error)[:200]) from error
        if now != self:
            raise refused(self.path, "the file was changed while it was in use",
                          f"it was {self.size:,} bytes and is {now.size:,}", "start again when it is whole")


class Span(NamedTuple):
    """Bytes of a file; `apart` from the rest if they are convolutions, which are let go when they are laid out."""

    begin: int
    end: int
    apart: bool


@dataclass(frozen=True, eq=False)
class Mapped:
    """A file's bytes, or a run of them."""

    seen: Seen
    memory: mmap.mmap
    start: int = 0                                 # where in the file the memory begins
    is_copy: bool = False

    def __len__(self) -> int:
        return len(self.memory)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], begin: int) -> Tensor:
        """The bytes from `begin` on as a tensor: in place, or copied where they do not lie on the dtype's boundary."""
        count, at = prod(shape), begin - self.start
        if not count:
            return torch.empty(shape, dtype=dtype)
        if at % dtype.itemsize == 0:
            return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=at).view(shape)
        raw = torch.frombuffer(self.memory, dtype=torch.uint8, count=count * dtype.itemsize, offset=at)
        return raw.clone().view(dtype).view(shape)

    def windows(self, spans: Mapping[T, Span]) -> Iterator[tuple[T, "Mapped"]]:
        """For each span the mapping that holds it, with others near it.

        A mapping lives as long as any of its tensors, and what was read of it counts as memory: so each has but a few.
        """
        for apart in (True, False):
            spread = sorted(((span, key) for key, span in spans.items() if span.apart == apart), key=lambda one: one[0])
            ends = accumulate(span.end - span.begin for span, _ in spread)
            for _, group in groupby(zip(spread, ends, strict=True), key=lambda one: one[1] // WINDOW):
                within = [one for one, _ in group]
                window = self.window(within[0][0].begin, max(span.end for span, _ in within))
                yield from ((key, window) for _, key in within)

    def window(self, begin: int, end: int) -> "Mapped":
        """A mapping of its own of these bytes, of the same file."""
        if self.is_copy or begin == end:
            return self
        start = begin - begin % mmap.ALLOCATIONGRANULARITY
        self.seen.check_unchanged()
        try:
            with self.seen.path.open("rb", buffering=0) as file:
                memory = mmap.mmap(file.fileno(), end - start, access=mmap.ACCESS_COPY, offset=start)
        except (OSError, ValueError) as error:
            raise self.refused("the file cannot be opened again", str(error)[:200]) from error
        return replace(self, memory=memory, start=start)

    def refused(self, what: str, why: str = "", remedy: str = "") -> MinisdError:
        return refused(self.seen.path, what, why, remedy)


def map_file(path: str | Path, copy: bool = False) -> Mapped:
    """Map a plain file, or read it into memory of our own; a folder, a pipe or a device is refused unopened."""
    path = Path(path)
    try:
        check_kind(path)
        with path.open("rb", buffering=0) as file:
            seen = Seen.now(path, os.fstat(file.fileno()))
            if not seen.size:
                raise refused(path, "the file is empty", remedy="copy or download it again")
            memory = copied(file, seen.size) if copy else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if memory is None:
                raise refused(path, "the file was cut off while it was read", f"it had {seen.size:,} bytes")
            return Mapped(seen, memory, is_copy=copy)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise refused(path, "a link that leads nowhere", f"it points to {shown(os.readlink(path))}") from error
        raise refused(path, "no such file") from error
    except MemoryError as error:
        raise MinisdError("not enough memory to read the file", shown(path, 4096), code=RESOURCE) from error
    except (OSError, ValueError) as error:
        raise refused(path, "the file cannot be opened", str(error)[:200]) from error


def copied(file: FileIO, size: int) -> mmap.mmap | None:
    """The file's bytes in memory of our own, or None if it ends before its size."""
    memory, at = mmap.mmap(-1, size), 0
    while at < size:
        count = file.readinto(memoryview(memory)[at:at + CHUNK]) or 0
        if not count:
            return None
        at += count
    return memory


def check_kind(path: Path) -> None:
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise refused(path, f"{KINDS.get(kind, 'a special file')}, not a checkpoint file")


def shown(text: object, longest: int = LONGEST_SHOWN) -> str:
    """A stranger's text as it may be printed: no control characters, no terminal escapes, not long."""
    whole = str(text)
    cut = whole[:longest]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return safe if cut == whole else f"{safe}…"


def refused(path: Path, what: str, why: str = "", remedy: str = "") -> MinisdError:
    """The one error of all readers: a bad input file."""
    return MinisdError(what, shown(path, 4096), why, remedy, BAD_FILE)
