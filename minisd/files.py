"""Files and folders that are either whole or not there: written aside, synchronised, and put in their place at once."""

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minisd.errors import RESOURCE, USAGE, MinisdError

HIDDEN = ".tmp-minisd-"
NEW = "new"
EXCHANGE, HERE = 2, -100                          # of Linux's renameat2: swap two names; paths as `rename` takes them


def vacant(folder: Path, names: Iterable[str], what: str) -> None:
    """Make the folder that `what` goes to, and refuse one where a file of these names would be overwritten."""
    if any((folder / name).exists() for name in names):
        raise MinisdError(f"the folder holds {what}", str(folder), "nothing is overwritten",
                          "name a new folder by --out", USAGE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinisdError(f"the folder for {what} cannot be made", str(folder), error.strerror or str(error),
                          "name another by --out", RESOURCE) from error


def put(path: Path, data: str | bytes) -> None:
    """Write a small file, whole or not at all, in the place of one that may be there."""
    hidden = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden.write_bytes(data.encode() if isinstance(data, str) else data)
        hidden.replace(path)
    except OSError as error:
        with suppress(OSError):
            hidden.unlink()
        raise MinisdError(f"{path.name} cannot be written", str(path), error.strerror or str(error),
                          "free some space, or name another place by --out", RESOURCE) from error


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """A path for a file or folder that becomes the target, or takes the place of a folder that is there.

    Until then it lies hidden beside it, locked by its writer. What killed writers have left there is removed.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    hidden, lock = locked(target.parent)
    try:
        yield hidden / NEW
        for path in [*(hidden / NEW).rglob("*"), hidden / NEW]:
            sync(path)
        move(hidden / NEW, target)
        sync(target.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(lock)


def locked(parent: Path) -> tuple[Path, int]:
    """A hidden folder and the handle that holds its lock; one that is swept before it is locked is made again."""
    while True:
        hidden = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=parent))
        lock = os.open(hidden, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if hidden.exists():
            return hidden, lock
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the hidden folders whose writers are gone."""
    for hidden in parent.glob(f"{HIDDEN}*"):
        try:
            lock = os.open(hidden, os.O_RDONLY)
        except OSError:
            continue                              # another's, or gone meanwhile
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(hidden, ignore_errors=True)
        except OSError:
            pass                                  # its writer is at work
        finally:
            os.close(lock)


def move(new: Path, target: Path) -> None:
    """Rename; a folder that stands there changes places with the new one, so that at no moment none is there."""
    if not target.is_dir():
        new.rename(target)
        return
    if not swapped(new, target):
        old = target.with_name(f"{target.name}.old-{os.getpid()}")
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def swapped(a: Path, b: Path) -> bool:
    """Whether the system could exchange the names in one step, as Linux can."""
    try:
        return not ctypes.CDLL(None).renameat2(HERE, os.fsencode(a), HERE, os.fsencode(b), EXCHANGE)
    except AttributeError:
        return False


def sync(path: Path) -> None:
    """Until what is written there is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
