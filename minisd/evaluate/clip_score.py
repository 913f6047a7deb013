"""How well pictures fit words, as CLIP's two towers see it (Hessel et al. 2021, arXiv 2104.08718, eq. 1)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.clip import CLIPText, CLIPVision
from minisd.errors import MinisdError
from minisd.store import load_modules
from minisd.text import tokenizer_of

WEIGHT = 2.5                                      # brings the score of good captions near 1 with OpenAI's ViT-B/32
TOWERS = ("text", "vision")
BATCH = 64


@dataclass(frozen=True)
class Judge:
    """A text and a vision tower that were trained together; `sha256` is that of their two files."""

    text: CLIPText
    vision: CLIPVision
    name: str = "judge"
    sha256: str = ""

    @torch.inference_mode()
    def pictures(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] in [-1, 1] -> unit vectors [n, d]; resized where the tower takes another size."""
        return torch.cat([F.normalize(self.vision(part).float(), dim=-1) for part in self._fitting(x).split(BATCH)])

    @torch.inference_mode()
    def captions(self, captions: list[str]) -> Tensor:
        """-> unit vectors [n, d]; a caption is cut at the window's end, as CLIP's training cuts it."""
        tokenizer = tokenizer_of(self.text.cfg)
        ids = torch.tensor([tokenizer.encode(caption, truncate=True) for caption in captions])
        ids = ids.to(self.text.token.weight.device)
        return torch.cat([F.normalize(self.text(part).pooled.float(), dim=-1) for part in ids.split(BATCH)])

    def _fitting(self, x: Tensor) -> Tensor:
        side = self.vision.cfg.image_size
        x = x.to(self.vision.cls.device)
        if x.shape[2:] == (side, side):
            return x
        return F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


def load_judge(folder: Path, device: str | torch.device = "cpu") -> Judge:
    """The towers of a model folder, in float32."""
    missing = [name for name in TOWERS if not (folder / f"{name}.safetensors").is_file()]
    if missing:
        raise MinisdError("no CLIP to judge pictures by", str(folder), f"it has no {' and no '.join(missing)} tower",
                          "name a model folder that has both by --judge")
    modules = load_modules(folder, TOWERS, device)[1]
    text, vision = cast(CLIPText, modules["text"]), cast(CLIPVision, modules["vision"])
    widths = [text.cfg.projection_dim or text.cfg.width, vision.cfg.projection_dim]
    if widths[0] != widths[1]:
        raise MinisdError("the CLIP towers do not belong together", str(folder),
                          f"text is projected to {widths[0]} features, pictures to {widths[1]}",
                          "name another model folder by --judge")
    digest = hashlib.sha256()
    for name in TOWERS:
        with (folder / f"{name}.safetensors").open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Judge(text, vision, folder.name, digest.hexdigest())


def cosine(pictures: Tensor, captions: Tensor) -> Tensor:
    """Unit vectors [n, d] of each -> [n], picture by picture with its own caption."""
    return (pictures * captions).sum(dim=-1)


def clip_score(cosines: Tensor) -> Tensor:
    """w * max(cosine, 0), w = 2.5."""
    return WEIGHT * cosines.clamp(min=0)
