"""Freed memory goes back to the system, or stays with a process that trains."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minisd.heap import trim

ROOT = Path(__file__).parents[1]
SIZE = 1 << 16                                    # bytes of a block: below what the C library maps by itself
FREED_AGAIN = """
import resource
import sys
import torch
from minisd.heap import hold

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.ones(1)
if "hold" in sys.argv:
    hold()
for step in range(12):
    before = faults()
    tensors = [torch.ones(1 << 24) for _ in range(2)]
    del tensors
print(faults() - before)
"""


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


def faults_of_a_step(*told: str) -> int:
    """Page faults of two times 64 MB, the twelfth time, in pages of 4 KB."""
    done = subprocess.run([sys.executable, "-c", FREED_AGAIN, *told], cwd=ROOT, capture_output=True, text=True,
                          check=True, env=os.environ | {"THP_MEM_ALLOC_ENABLE": "0"})
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_a_steps_memory_serves_the_next():
    assert faults_of_a_step() > 10_000
    assert faults_of_a_step("hold") < 100
