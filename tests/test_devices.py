"""What is computed where, when the user does not say."""

from pathlib import Path

import pytest
import torch

from minisd import devices
from minisd.errors import RESOURCE, USAGE, MinisdError


@pytest.mark.parametrize(("flags", "expected"), [
    ("fpu avx2 avx512f avx512_bf16", torch.bfloat16), ("fpu amx_bf16 amx_tile", torch.bfloat16),
    ("fpu avx2 avx512f", torch.float32), ("", torch.float32)])
def test_a_processor_chooses_its_dtype(flags: str, expected: torch.dtype, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: spectre\n")
    assert devices.pick_dtype("auto", torch.device("cpu")) == expected


def test_float32_where_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "none")
    assert devices.pick_dtype("auto", torch.device("cpu")) == torch.float32


def test_a_gpu_has_float16_and_names_are_obeyed() -> None:
    assert devices.pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert devices.pick_dtype("float32", torch.device("cuda")) == torch.float32
    assert devices.pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "bogus", "cpu:", "", "cuda:12345"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(MinisdError) as fault:
        devices.pick_device(name)
    assert fault.value.code == USAGE


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said() -> None:
    assert devices.pick_device("auto") == torch.device("cpu")
    with pytest.raises(MinisdError, match="no device 'cuda' here") as fault:
        devices.pick_device("cuda")
    assert fault.value.code == RESOURCE


def test_unknown_dtypes_are_refused() -> None:
    with pytest.raises(MinisdError, match="float8"):
        devices.pick_dtype("float8", torch.device("cpu"))


def test_float32_means_float32_on_a_gpu() -> None:
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        devices.pick_device("cpu")                # where it means nothing, nothing is touched
        assert torch.backends.cudnn.allow_tf32
        devices.forbid_tf32()
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags
