"""diffusers and peft with LoRAs, as their users have them: by `load_lora_weights`, and as the training example does."""

import warnings
from contextlib import nullcontext
from pathlib import Path

import run_diffusers
import torch
from peft import LoraConfig
from torch import Tensor, nn

warnings.filterwarnings("ignore")


class Contestant(run_diffusers.Contestant):
    """The pipeline of a folder, and the LoRAs that it has loaded."""

    walking = staticmethod(nullcontext)           # around the steps of one picture

    def __init__(self, folder: str, dtype: str, side: int):
        super().__init__(folder, dtype, side)
        self.pipe.unet.requires_grad_(False)
        self.fused = False
        self.known: list[str] = []

    def attach(self, file: str) -> None:
        path = Path(file)
        self.pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)

    def detach(self, file: str) -> None:
        self.pipe.delete_adapters([Path(file).stem])

    def wear(self, files: list[str], merged: bool = False) -> None:
        """These LoRAs and no others; the others stay loaded and switched off, which costs less than to load again."""
        if self.fused:
            self.pipe.unfuse_lora()
        for file in files:
            if Path(file).stem not in self.known:
                self.attach(file)
                self.known.append(Path(file).stem)
        if files:
            self.pipe.enable_lora()
            self.pipe.set_adapters([Path(file).stem for file in files])
        elif self.known:
            self.pipe.disable_lora()
        if merged:
            self.pipe.fuse_lora()
        self.fused = merged

    def trained(self, rank: int) -> list[nn.Parameter]:
        """Those of a new LoRA of this rank on all attentions."""
        self.pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian",
                                              target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
        return [parameter for parameter in self.pipe.unet.parameters() if parameter.requires_grad]

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-4)

    def predict(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.pipe.unet(x, t, context).sample
