"""The LoRAs of a list of drawings: read and checked before the model is loaded, and laid on as each drawing says."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from minisd import attach
from minisd.adapters import fitting, parts, side_of, weigh
from minisd.config import ModelConfig
from minisd.pipeline import StableDiffusion
from minisd.store import blank
from minisd.tags import Lora
from weights_convert.lora.adapter import Adapter


@dataclass(frozen=True)
class Wardrobe:
    """LoRAs that fit a model, by the sha256 of their files."""

    adapters: Mapping[str, Adapter]

    def wear(self, sd: StableDiffusion, loras: Iterable[Lora]) -> None:
        """The models with these LoRAs and no others, in this order. Where they are on already, strengths are set."""
        loras = list(loras)
        for part, model in parts(sd).items():
            wanted = {key_of(one): self.adapters[one.sha256].of(part) for one in loras}
            wanted = {key: entries for key, entries in wanted.items() if entries}
            worn = attach.adapters(model)
            if worn != list(wanted):
                for key in worn:
                    attach.detach(model, key)
                for key, entries in wanted.items():
                    attach.put(model, key, {path: side_of(entry, model.get_submodule(path))
                                            for path, entry in entries.items()})
        for one in loras:
            weigh(sd, key_of(one), one.strength)


def wardrobe_of(files: Mapping[str, Path], loras: Iterable[Lora], cfg: ModelConfig, allow_unused: bool) -> Wardrobe:
    """The files of these LoRAs, for a model of this config; whatever does not fit is refused."""
    wanted = list(dict.fromkeys(loras))
    for one in wanted:
        one.strength.check_stages(len(cfg.unet.widths))
    models = blank(cfg, ("unet", "text", "text_2")) if wanted else {}
    return Wardrobe({sha256: fitting(files[sha256], cfg, models, allow_unused)
                     for sha256 in dict.fromkeys(one.sha256 for one in wanted)})


def key_of(lora: Lora) -> str:
    """What a LoRA is called beside a model: two files may have one name."""
    return re.sub(r"\W", "_", lora.name) + "_" + lora.sha256[:8]
