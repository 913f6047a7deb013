"""Work that is killed at any moment, and what a folder then holds."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

MOMENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.link", "os.chmod", "shutil.rmtree", "shutil.copytree",
           "ctypes.dlsym", "tempfile.mkdtemp"}


def survives(work: Callable[[], object], moment: int) -> bool:
    """Runs `work` in a process of its own that is killed the n-th time it asks something of the file system."""
    child = os.fork()
    if not child:
        killed_after(moment)
        work()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


def killed_after(moment: int) -> None:
    left = [moment]

    def watch(event: str, _: object) -> None:
        if event not in MOMENTS:
            return
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
