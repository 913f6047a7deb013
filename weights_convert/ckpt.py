"""PyTorch's zip checkpoints (.ckpt, .pt, .bin), read without torch's unpickler. Not finished."""

from torch import Tensor

from weights_convert.mapped import Mapped


def read(file: Mapped) -> tuple[dict[str, Tensor], list[str]]:
    raise file.refused(".ckpt files are not read yet")
