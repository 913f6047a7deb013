"""Stable Diffusion in pure PyTorch.

The public names are fetched when they are first used, so that `import minisd` alone costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisd.adapters import add_lora as add_lora
    from minisd.errors import MinisdError as MinisdError
    from minisd.pipeline import StableDiffusion as StableDiffusion
    from minisd.store import load as load

__version__ = "0.1.0"
__all__ = ["MinisdError", "StableDiffusion", "__version__", "add_lora", "load"]

# Large tensors lie in pages of 2 MB where Linux has them: to clear 4 KB after 4 KB takes a quarter of a decoding.
# torch reads this before its first tensor; 0 in the environment turns it off.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

HOMES = {"load": "minisd.store", "StableDiffusion": "minisd.pipeline", "MinisdError": "minisd.errors",
         "add_lora": "minisd.adapters"}


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'minisd' has no attribute {name!r}: it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
