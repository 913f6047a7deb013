"""A file as memory: checked to be a plain file, mapped without a copy, and handed out as tensors that lie in it.

The map is private: writing into a tensor changes no file. A file that somebody truncates while it is mapped would end
the process by a signal when the lost part is touched; `copy=True` reads everything first, and is safe from that.
"""

import mmap
import os
import stat
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from minisd.errors import BAD_FILE, RESOURCE, MinisdError

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
         stat.S_IFSOCK: "a socket"}
CHUNK = 2 ** 24
LONGEST_SHOWN = 80


@dataclass(frozen=True, eq=False)
class Mapped:
    """A file's bytes, and what it looked like when they were mapped."""

    path: Path
    memory: mmap.mmap
    stamp: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.memory)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], begin: int) -> Tensor:
        """The bytes from `begin` on as a tensor: in place, or copied where they do not lie on the dtype's boundary."""
        count = prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        if begin % dtype.itemsize == 0:
            return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=begin).view(shape)
        raw = torch.frombuffer(self.memory, dtype=torch.uint8, count=count * dtype.itemsize, offset=begin)
        return raw.clone().view(dtype).view(shape)

    def refused(self, what: str, why: str = "", remedy: str = "") -> MinisdError:
        return refused(self.path, what, why, remedy)


def map_file(path: str | Path, copy: bool = False) -> Mapped:
    """Map a plain file, or read it into memory of our own; a folder, a pipe or a device is refused unopened."""
    path = Path(path)
    try:
        check_kind(path)
        with path.open("rb", buffering=0) as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            if not stamp[0]:
                raise refused(path, "the file is empty", remedy="copy or download it again")
            memory = copied(file, stamp[0]) if copy else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if memory is None:
                raise refused(path, "the file was cut off while it was read", f"it had {stamp[0]:,} bytes")
            return Mapped(path, memory, stamp)
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


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced; its size comes first."""
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def shown(text: object, longest: int = LONGEST_SHOWN) -> str:
    """A stranger's text as it may be printed: no control characters, no terminal escapes, not long."""
    whole = str(text)
    cut = whole[:longest]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return safe if cut == whole else f"{safe}…"


def refused(path: Path, what: str, why: str = "", remedy: str = "") -> MinisdError:
    """The one error of all readers: a bad input file."""
    return MinisdError(what, shown(path, 4096), why, remedy, BAD_FILE)
