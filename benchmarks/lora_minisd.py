"""minisd with LoRAs, as its users have them."""

from pathlib import Path

import run_minisd
import torch
from torch import Tensor, nn

from minisd import adapters, attach
from minisd.fast.beside import keeping


class Contestant(run_minisd.Contestant):
    """The model of a folder, and the LoRAs laid beside it."""

    walking = staticmethod(keeping)               # around the steps of one picture

    def __init__(self, folder: str, dtype: str, side: int):
        super().__init__(folder, dtype, side)
        self.merged: adapters.MergedPipeline | None = None

    def attach(self, file: str) -> None:
        adapters.add_lora(self.sd, file)

    def detach(self, file: str) -> None:
        adapters.remove_lora(self.sd, Path(file).stem)

    def wear(self, files: list[str], merged: bool = False) -> None:
        """These LoRAs and no others."""
        if self.merged is not None:
            self.merged.undo()
            self.merged = None
        for name in attach.adapters(self.sd.unet):
            adapters.remove_lora(self.sd, name)
        for file in files:
            adapters.add_lora(self.sd, file)
        if merged:
            self.merged = adapters.merge_loras(self.sd)

    def trained(self, rank: int) -> list[nn.Parameter]:
        """Those of a new LoRA of this rank on all attentions."""
        self.sd.unet.to(memory_format=torch.channels_last)
        spec = attach.LoRASpec("new", rank, rank, ("*_attn.*",))
        return attach.attach(self.sd.unet, spec, torch.Generator().manual_seed(0))

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def predict(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.sd.unet(x.contiguous(memory_format=torch.channels_last), t, context)
