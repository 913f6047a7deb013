"""Large tensors in large pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TOUCH = """
import resource
import minisd
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.ones(1)
before = faults()
tensor = torch.ones(1 << 24)
print(faults() - before)
"""


def touched(**environment: str) -> int:
    """Page faults of 64 MB."""
    env = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"} | environment
    done = subprocess.run([sys.executable, "-c", TOUCH], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not PAGES.exists() or "[never]" in PAGES.read_text(), reason="Linux gives no large pages here")
def test_large_tensors_take_few_page_faults_unless_it_is_turned_off() -> None:
    assert touched() < 4000                       # 16384 pages of 4 KB, or 32 of 2 MB where none lacks
    assert touched(THP_MEM_ALLOC_ENABLE="0") > 16000
