"""What this machine can do at best, in GFLOP/s: `python benchmarks/peaks.py` prints JSON.

The best of several repeats of a matrix product and of a 3x3 convolution, of shapes that Stable Diffusion 1.5 has and
that suit the processor. Whatever a network takes beyond its arithmetic at this pace is what could still be won.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from minisd.fast.onednn import serves
from minisd.fast.passes import quicken

REPEATS = 10
TOKENS, WIDTH = 2048, 1280                            # of the product
CHANNELS, SIDE = 640, 32                              # of the convolution, for a pair of pictures
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    print(json.dumps({name: peak(dtype) for name, dtype in DTYPES.items() if serves(torch.zeros(1, dtype=dtype))}))


def peak(dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s by kind of layer."""
    linear = quicken(nn.Sequential(nn.Linear(WIDTH, WIDTH).to(dtype).requires_grad_(False)))
    conv = quicken(nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).to(dtype).requires_grad_(False)))
    tokens = torch.randn(TOKENS, WIDTH).to(dtype)
    pair = torch.randn(2, CHANNELS, SIDE, SIDE).to(dtype).to(memory_format=torch.channels_last)
    return {"product": 2e-9 * TOKENS * WIDTH ** 2 / best(lambda: linear(tokens)),
            "convolution": 2e-9 * pair.numel() * CHANNELS * 9 / best(lambda: conv(pair))}


@torch.inference_mode()
def best(run: Callable[[], Tensor]) -> float:
    """Seconds of the quickest repeat."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
