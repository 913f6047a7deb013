"""One library with LoRAs in a process of its own, told by lines of JSON what to do, like `worker.py`."""

import argparse
import gc
import importlib
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from worker import difference, serve

RANK, BATCH = 16, 1                                   # of the training step
TRIES = 3                                             # of a step: the first warms up, the shortest counts


class Worker:
    """The commands. Each answers with a dictionary; seconds are of what its name says alone."""

    def __init__(self, library: str, folder: str, dtype: str, side: int):
        self.model = importlib.import_module(f"lora_{library}").Contestant(folder, dtype, side)
        self.output = torch.empty(0)

    def attach(self, file: str) -> dict[str, Any]:
        """A file read and laid on; then it is taken off again."""
        gc.collect()
        start = perf_counter()
        self.model.attach(file)
        seconds = perf_counter() - start
        self.model.detach(file)
        return {"seconds": seconds}

    def step(self, files: list[str], merged: bool) -> dict[str, Any]:
        """The UNet on a pair, wearing these LoRAs, as in the middle of a picture."""
        self.model.wear(files, merged)
        found = []
        with torch.inference_mode(), self.model.walking():
            for _ in range(TRIES):
                start = perf_counter()
                self.output = self.model.unet()
                found.append(perf_counter() - start)
        return {"seconds": min(found)}

    def picture(self, file: str) -> dict[str, Any]:
        """One in few steps, wearing this LoRA; from prompt to pixels."""
        self.model.wear([file])
        with torch.inference_mode():
            start = perf_counter()
            self.model.picture()
            return {"seconds": perf_counter() - start}

    def prepare(self) -> dict[str, Any]:
        """A new LoRA to train."""
        self.parameters = self.model.trained(RANK)
        self.optimizer = self.model.optimizer(self.parameters)
        return {"parameters": sum(parameter.numel() for parameter in self.parameters)}

    def train(self) -> dict[str, Any]:
        """Prediction, gradients, update."""
        inputs = self.model.inputs
        x, context = inputs.latents.expand(BATCH, -1, -1, -1), inputs.context[:BATCH]
        t = torch.full((BATCH,), 500)
        start = perf_counter()
        F.mse_loss(self.model.predict(x, t, context), x).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"seconds": perf_counter() - start}

    def save(self, path: str) -> dict[str, Any]:
        torch.save(self.output, path)
        return {}

    def compare(self, path: str) -> dict[str, Any]:
        return {"difference": difference(self.output, torch.load(path, weights_only=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=("minisd", "diffusers"))
    parser.add_argument("folder")
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    parser.add_argument("side", type=int, help="of the latents")
    options = parser.parse_args()
    serve(lambda: Worker(options.library, options.folder, options.dtype, options.side),
          ("attach", "step", "picture", "prepare", "train", "save", "compare"))


if __name__ == "__main__":
    main()
