"""What makes the program wait for the device, seen as it happens: answers that are asked for, and copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minisd import devices

# Operators whose answer, or the shape of whose answer, the program has to wait for.
ASKING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select", "equal", "allclose",
          "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "repeat_interleave",
          "bincount", "histc", "_assert_async"}


class Watch(TorchDispatchMode):
    """Notes operators that wait, between a network's first call and its last; `calls` are to be that many.

    Device tensors are those on "meta", which hold nothing: who asks one of them for a number fails at once, too.
    """

    def __init__(self, network: nn.Module, calls: int):
        super().__init__()
        self.network, self.calls, self.called, self.sending = network, calls, 0, False
        self.seen: list[str] = []
        self.sent = 0

    @property
    def walking(self) -> bool:
        return 0 < self.called < self.calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        answer = func(*args, **(kwargs or {}))
        if self.walking and not self.sending:
            devices = {one.device.type for one in (*args, answer) if isinstance(one, Tensor)}
            masked = name == "index" and any(one is not None and one.dtype == torch.bool for one in args[1])
            if name in ASKING or masked or (name in ("_to_copy", "copy_") and len(devices) > 1):
                self.seen.append(f"{func} after call {self.called} of {self.calls}")
        return answer

    @contextmanager
    def watching(self) -> Iterator["Watch"]:
        """While the network walks."""
        def count(*_: Any) -> None:
            self.called += 1

        handle = self.network.register_forward_pre_hook(count)
        try:
            with self:
                yield self
        finally:
            handle.remove()

    def send(self, values: Tensor, device: torch.device | str) -> Tensor:
        """`devices.sent`, the one copy that nobody waits for, counted."""
        self.sending, self.sent = True, self.sent + self.walking
        try:
            return devices.sent(values, device)
        finally:
            self.sending = False
