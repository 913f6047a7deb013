"""What all tests share: how close is close, stated once, and one thread, since the tests' tensors are tiny."""

from collections.abc import Iterator

import pytest
import torch

# Largest difference from a reference implementation on the CPU, relative to the largest value of its tensor.
TOLERANCE = {
    torch.float32: {"unet": 0.0, "vae": 1e-5, "clip": 1e-5},
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Threads would only wait for one another, and where processes share the cores, for a very long time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
