"""BRISQUE (Mittal et al. 2012), quality without a reference, by the regressor that the package `brisque` carries."""

import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

ABSENT = "the package brisque is not installed: pip install minisd[judge]"


class Brisque:
    """Scores of pictures, about 0 = natural to 100 = distorted; `absent` says why there are none, else is empty.

    It was trained on photographs: of drawings it only tells which is the less disturbed.
    """

    def __init__(self) -> None:
        self.absent = ""
        try:
            from brisque import BRISQUE
        except ImportError:
            self.absent = ABSENT
            return
        self._judge = BRISQUE(url=False)

    def mean(self, pictures: Sequence[Image.Image]) -> float | None:
        """Of those that have a score: a picture of one colour has none."""
        if self.absent:
            return None
        scores = [self._score(picture) for picture in pictures]
        finite = [score for score in scores if np.isfinite(score)]
        return sum(finite) / len(finite) if finite else None

    def _score(self, picture: Image.Image) -> float:
        """The package's `score` with its features as plain numbers: its own are arrays, which numpy 2.4 refuses."""
        import cv2
        from skimage.color import rgb2gray
        judge, grey = self._judge, rgb2gray(np.array(picture))
        half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            features = [judge.calculate_brisque_features(image, kernel_size=7, sigma=7 / 6) for image in (grey, half)]
            plain = np.array([np.asarray(value).item() for value in np.concatenate(features)])
            if not np.isfinite(plain).all():
                return float("nan")
            return float(np.asarray(judge.calculate_image_quality_score(plain)).item())
