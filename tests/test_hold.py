"""Freed memory stays with a process that trains."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


def faults_of_a_step(*told: str) -> int:
    """Page faults of two times 64 MB, the twelfth time, in pages of 4 KB."""
    done = subprocess.run([sys.executable, "-c", FREED_AGAIN, *told], cwd=ROOT, capture_output=True, text=True,
                          check=True, env=os.environ | {"THP_MEM_ALLOC_ENABLE": "0"})
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_a_steps_memory_serves_the_next():
    assert faults_of_a_step() > 10_000
    assert faults_of_a_step("hold") < 100
