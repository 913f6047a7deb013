"""The clock and the memory of a device, be it a GPU, which works while the program goes on, or the processor."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GIB = 2 ** 30


class Meter:
    """Seconds that end when the device has finished; bytes that it holds, and the most it has held.

    On a GPU they are PyTorch's own; on the processor those of the whole process, as the Linux kernel counts them.
    """

    def __init__(self, device: str | torch.device):
        self.device = torch.device(device)
        self.gpu = self.device.type == "cuda"

    def seconds(self, run: Callable[[], Any]) -> float:
        self.wait()
        start = perf_counter()
        run()
        self.wait()
        return perf_counter() - start

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def begin(self) -> int:
        """Forgets the most that was held; what is held now."""
        if self.gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        RESET.write_text("5")                         # VmHWM begins anew
        return self._kept("VmRSS")

    def peak(self) -> int:
        """The most that was held since `begin`."""
        return torch.cuda.max_memory_allocated(self.device) if self.gpu else self._kept("VmHWM")

    @staticmethod
    def _kept(name: str) -> int:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) << 10

    def name(self) -> str:
        """The GPU's own; the processor's is found in `speed.cpu`."""
        return torch.cuda.get_device_name(self.device) if self.gpu else ""
