"""Tensors that need be computed once, kept in memory and on disk under what they were computed from."""

import hashlib
import logging
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

MEMORY = 1 << 29                                  # bytes of entries kept in memory; beyond, they are read again
Tensors = dict[str, Tensor]


class Cache:
    """A folder of tensors for one maker (an encoder with its weights and settings) and any number of contents.

    Every entry carries a checksum. One that is missing, cut off or changed reads as absent, and is computed again.
    A disk that is full or read-only is said once, and then done without.
    """

    def __init__(self, folder: Path, maker: str):
        self.folder = folder / maker[:16]
        self.memory: dict[str, Tensors] = {}
        self.room = MEMORY
        self.writable = True

    def recall(self, content: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of a content: remembered, read, or made and kept."""
        if content in self.memory:
            return self.memory[content]
        found = self.get(content)
        if found is None:
            found = make()
            self.put(content, found)
        size = sum(t.numel() * t.element_size() for t in found.values())
        if size <= self.room:
            self.memory[content] = found
            self.room -= size
        return found

    def path(self, content: str) -> Path:
        key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / key[:2] / f"{key[2:34]}.safetensors"

    def get(self, content: str) -> Tensors | None:
        """An entry of the folder that is whole."""
        path = self.path(content)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors if (file.metadata() or {}).get("crc32") == checksum(tensors) else None
        except Exception:                         # damaged bytes may raise anything; the entry is made anew
            return None

    def put(self, content: str, tensors: Tensors) -> None:
        """Write an entry, whole or not at all."""
        if not self.writable:
            return
        path = self.path(content)
        temporary = path.with_suffix(f".tmp{os.getpid()}-{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, {"crc32": checksum(tensors)})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as fault:
            self.writable = False
            log.warning("nothing more is cached in %s: %s", self.folder, fault)


def checksum(tensors: Tensors) -> str:
    """Of names, shapes, types and values."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes(), crc)
    return f"{crc:08x}"


def maker_of(module: nn.Module, settings: object) -> str:
    """A cache's maker: the names and values of all weights, and the settings they are used with."""
    found = hashlib.sha256(repr(settings).encode())
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
