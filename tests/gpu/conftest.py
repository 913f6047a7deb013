"""The device that the tests of this folder run on.

Every test runs twice: on the processor, in miniature, which proves the test; and, with the marker `gpu`, on the GPU.
"""

import pytest
import torch

from minisd.devices import forbid_tf32


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and a PyTorch that was built for it")
    forbid_tf32()
    return torch.device(request.param)
