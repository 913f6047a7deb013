"""Freed memory goes back to the system."""

import sys

import pytest
import torch

from minisd.heap import trim

SIZE = 1 << 16                                    # bytes of a block: below what the C library maps by itself


def resident() -> int:
    """Bytes of this process in memory, but for files."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_what_was_freed_is_the_systems_again():
    """1600 blocks with one kept above them, so that the heap cannot shrink from its end."""
    blocks = [torch.ones(SIZE, dtype=torch.uint8) for _ in range(1600)]
    above = torch.ones(SIZE, dtype=torch.uint8)
    full = resident()
    del blocks
    trim()
    assert full - resident() > 1000 * SIZE and above.sum() == SIZE
