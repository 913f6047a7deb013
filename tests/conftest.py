"""What all tests share: how close is close, stated once, and one thread, since the tests' tensors are tiny."""

from collections.abc import Iterator

import pytest
import torch

# Largest difference from a reference implementation on the CPU, relative to the largest value of its tensor.
# 0 is equal bits: where the same kernels run on the same layouts, anything else is a difference in the model.
TOLERANCE = {torch.float32: 0.0, torch.bfloat16: 0.0}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Threads would only wait for one another, and where processes share the cores, for a very long time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
