"""Where to compute, and in what precision, when the user does not say; and the way there.

float32 means float32 on a GPU, too: TensorFloat-32, which keeps 10 bits of the 23 behind the point, is switched off for
products and, unlike PyTorch's own default, for convolutions. Whoever wants speed takes half precision, which is the
default; whoever wants TensorFloat-32 all the same switches it on after loading (`torch.backends.cudnn.allow_tf32`).
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from minisd.errors import RESOURCE, USAGE, MinisdError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
FAST_BF16 = {"amx_bf16", "avx512_bf16"}           # processors that multiply bfloat16 faster than float32
DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:[0-9]{1,3})?")
CPU, CPUINFO = torch.device("cpu"), Path("/proc/cpuinfo")


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; what it computes in float32 is exact from here on."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not DEVICE.fullmatch(name):
        raise MinisdError(f"no device is called {name[:40]!r}", "--device", remedy="give auto, cpu, cuda, cuda:1, ...",
                          code=USAGE)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MinisdError(f"no device {name!r} here", "--device", str(error).splitlines()[0][:200],
                          "give auto, cpu or cuda", RESOURCE) from error
    if device.type == "cuda":
        forbid_tf32()
    return device


def forbid_tf32() -> None:
    """Settings of PyTorch's for the whole process; they matter on GPUs alone."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float16 on a GPU; on a CPU bfloat16 where its instructions make it the faster, else float32."""
    if name != "auto":
        if name not in DTYPES:
            raise MinisdError(f"no dtype {name!r}", "--dtype", remedy=f"give auto, {', '.join(DTYPES)}", code=USAGE)
        return DTYPES[name]
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if cpu_flags() & FAST_BF16 else torch.float32


def cpu_flags() -> set[str]:
    """The processor's instruction sets, as the Linux kernel lists them; empty elsewhere."""
    if not CPUINFO.exists():
        return set()
    line = next((line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")), "")
    return set(line.split())


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """The host's tensor on a device. A GPU fetches it out of pinned memory by itself, while the program goes on."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
