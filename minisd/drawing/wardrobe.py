"""What a list of drawings wears: LoRAs and words, read and checked before the model is loaded, and laid on as each
drawing says."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from minisd import attach
from minisd.adapters import fitting, parts, side_of, weigh
from minisd.config import ModelConfig
from minisd.drawing.plan import Drawing
from minisd.drawing.tags import Embedding, Lora
from minisd.pipeline import StableDiffusion
from minisd.store import blank
from minisd.words import Lesson, forget, lessons_in, must_differ, teach
from weights_convert.lora.adapter import Adapter

Outfit = tuple[tuple[Lora, ...], tuple[Embedding, ...]]


@dataclass(frozen=True)
class Wardrobe:
    """LoRAs that fit a model, and what is taught by embeddings and by LoRAs, all by the sha256 of their files."""

    adapters: Mapping[str, Adapter]
    lessons: Mapping[str, Sequence[Lesson]]

    def wear(self, sd: StableDiffusion, drawing: Drawing) -> None:
        """The models with a drawing's LoRAs and words and no others. Where they are on already, strengths are set."""
        for part, model in parts(sd).items():
            wanted = {key_of(one): self.adapters[one.sha256].of(part) for one in drawing.loras}
            wanted = {key: entries for key, entries in wanted.items() if entries}
            worn = attach.adapters(model)
            if worn != list(wanted):
                for key in worn:
                    attach.detach(model, key)
                for key, entries in wanted.items():
                    attach.put(model, key, {path: side_of(entry, model.get_submodule(path))
                                            for path, entry in entries.items()})
        for one in drawing.loras:
            weigh(sd, key_of(one), one.strength)
        self._speak(sd, outfit_of(drawing))

    def batches(self, sd: StableDiffusion, drawings: Sequence[Drawing], batch: int) -> Iterator[list[Drawing]]:
        """As the pipeline's own, of drawings that know different words: a word takes as many tokens as it has vectors.

        Whoever draws has to `wear` each batch.
        """
        for outfit, run in groupby(drawings, outfit_of):
            self._speak(sd, outfit)
            yield from list(sd.batches(list(run), batch))

    def _speak(self, sd: StableDiffusion, outfit: Outfit) -> None:
        """The text encoders with an outfit's words, and of the others here none."""
        wanted = self.taught(outfit)
        every = {word for lessons in self.lessons.values() for one in lessons for word in one.words}
        there = [word.text for word in sd.text[0].cfg.words if word.text in every]
        if there != [word for one in wanted for word in one.words]:
            for text in sd.text:
                forget(text, every)
            teach(sd, wanted)

    def taught(self, outfit: Outfit) -> list[Lesson]:
        """The lessons of an outfit's files."""
        return [lesson for files in outfit for one in files for lesson in self.lessons.get(one.sha256, ())]


def wardrobe_of(files: Mapping[str, Path], lessons: Mapping[str, Lesson], drawings: Iterable[Drawing],
                cfg: ModelConfig, allow_unused: bool) -> Wardrobe:
    """The LoRAs and words of these drawings, for a model of this config; whatever does not fit is refused.

    `files` are the LoRAs', `lessons` the embeddings'.
    """
    outfits = dict.fromkeys(outfit_of(one) for one in drawings)
    wanted = dict.fromkeys(lora for loras, _ in outfits for lora in loras)
    for one in wanted:
        one.strength.check_stages(len(cfg.unet.widths))
    models = blank(cfg, ("unet", "text", "text_2")) if wanted else {}
    adapters = {sha256: fitting(files[sha256], cfg, models, allow_unused)
                for sha256 in dict.fromkeys(one.sha256 for one in wanted)}
    brought = {sha256: lessons_in(one.embeddings, cfg, str(files[sha256])) for sha256, one in adapters.items()}
    wardrobe = Wardrobe(adapters, brought | {sha256: (one,) for sha256, one in lessons.items()})
    for outfit in outfits:
        must_differ([word.text for text in cfg.text for word in text.words], wardrobe.taught(outfit))
    return wardrobe


def outfit_of(drawing: Drawing) -> Outfit:
    """All that a drawing wears."""
    return drawing.loras, drawing.embeddings


def key_of(lora: Lora) -> str:
    """What a LoRA is called beside a model: two files may have one name."""
    return re.sub(r"\W", "_", lora.name) + "_" + lora.sha256[:8]
