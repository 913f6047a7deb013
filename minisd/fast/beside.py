"""The fast layers with room for side paths: LoRA costs no layer its speed."""

from minisd.fast.onednn import OneDNNLinear, OneDNNPoint, PackedConv2d
from minisd.lora import LoRAConv2d, LoRALinear


class OneDNNLoRALinear(LoRALinear, OneDNNLinear):
    """A Linear by oneDNN, and what is beside it."""


class OneDNNLoRAPoint(LoRAConv2d, OneDNNPoint):
    """A 1x1 convolution as a product, and what is beside it."""


class PackedLoRAConv2d(LoRAConv2d, PackedConv2d):
    """A convolution of a packed weight, and what is beside it."""
