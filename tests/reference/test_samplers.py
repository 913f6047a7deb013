"""Every sampler beside diffusers at every call of the network, each fed its own outputs, on a toy UNet.

Ours in float64 and in float32, the reference with its word `float32` read as float64, where nothing but rounding may
differ: as it is, its tables have lost up to four digits.  Where the reference is wrong, ours follows the mathematics:
test_sampler_faults.py says why.  benchmarks/samplers.py prints what is found here as a table.
"""
import pytest
from reference.sampler_cases import CASES
from reference.walks import compared

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_that_of_diffusers(name: str) -> None:
    found = [compared(CASES[name], prediction, n) for prediction, n in CASES[name].walks]
    print(f"{name}: {max(one.float64 for one in found):.1e}, {max(one.float32 for one in found):.1e}")
