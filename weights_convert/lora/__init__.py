"""LoRA files and their kin: read from every dialect, written in those that others read, and calculated with."""
