"""Tensors that need be computed once, kept on disk under what they were computed from."""

import hashlib
import os
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class Cache:
    """A folder of tensors for one maker (an encoder with its weights and settings) and any number of contents.

    Every entry carries a checksum. One that is missing, cut off or changed reads as absent, so it is computed again.
    """

    def __init__(self, folder: Path, maker: str):
        self.folder = folder / maker[:16]

    def path(self, content: str) -> Path:
        key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / key[:2] / f"{key[2:34]}.safetensors"

    def get(self, content: str) -> dict[str, Tensor] | None:
        path = self.path(content)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors if (file.metadata() or {}).get("crc32") == checksum(tensors) else None
        except (SafetensorError, OSError):
            return None

    def put(self, content: str, tensors: dict[str, Tensor]) -> None:
        path = self.path(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".tmp{os.getpid()}")
        tensors = {name: t.contiguous() for name, t in tensors.items()}
        save_file(tensors, temporary, {"crc32": checksum(tensors)})
        os.replace(temporary, path)


def checksum(tensors: dict[str, Tensor]) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes(), crc)
    return f"{crc:08x}"


def weights_hash(module: nn.Module) -> str:
    """Names and values of all weights, as a cache's maker."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
