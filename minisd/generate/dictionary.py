"""The embeddings of a run for one model, and which of their words the prompts say."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from minisd.config import ModelConfig
from minisd.drawing.plan import Drawing
from minisd.drawing.tags import Embedding
from minisd.generate.shelf import Shelf
from minisd.words import lesson_of, said

log = logging.getLogger(__name__)


class Dictionary:
    """What the embeddings of a shelf teach, by the sha256 of their files. What does not fit the model is refused."""

    def __init__(self, library: Shelf, cfg: ModelConfig) -> None:
        self.library = library
        self.lessons = {sha256: lesson_of(path, cfg) for sha256, path in library.files.items()}

    def say(self, folder: Path, options: Sequence[str], texts: Collection[str]) -> tuple[Embedding, ...]:
        """The embeddings asked for whose words are said: another would change nothing, and is not recorded."""
        return tuple(one for one in self.library.embeddings(folder, options) if said(self.lessons[one.sha256], texts))

    def tell_unsaid(self, drawings: Sequence[Drawing]) -> None:
        """A note on embeddings that no prompt makes use of."""
        used = {one.sha256 for drawing in drawings for one in drawing.embeddings}
        for sha256, lesson in self.lessons.items():
            if sha256 not in used:
                log.warning("%s: no prompt says its word, %s", lesson.where, " or ".join(lesson.words))
