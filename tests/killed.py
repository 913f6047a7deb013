"""Work that is killed at any moment, and what a folder then holds."""

import os
import signal
import sys
from pathlib import Path

MOMENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.link", "os.chmod", "shutil.rmtree", "shutil.copytree",
           "ctypes.dlsym", "tempfile.mkdtemp"}


def survives(work, moment: int) -> bool:
    """Runs `work` in a process of its own that is killed the n-th time it asks something of the file system."""
    child = os.fork()
    if not child:
        left = [moment]

        def watch(event: str, _: object) -> None:
            if event in MOMENTS:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.waitstatus_to_exitcode(status) == 0


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
