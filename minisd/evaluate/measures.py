"""The three measures of a text-to-image model, each as figures: reconstruction, retrieval, distance of features."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.evaluate.clip_score import Judge, clip_score, cosine
from minisd.evaluate.exam import Exam
from minisd.evaluate.figure import Figure, mean, share
from minisd.evaluate.frechet import frechet
from minisd.evaluate.retrieval import ranks, within
from minisd.evaluate.similarity import psnr, ssim
from minisd.vae import VAE

BATCH = 16
DRAWN, UNSEEN, SEEN = "drawn", "drawn, unseen combinations", "drawn, trained combinations"
REAL, TRAINED = "real, held out", "real, trained on"


@torch.inference_mode()
def reconstruction(vae: VAE, pictures: Tensor) -> list[Figure]:
    """Pictures [n, 3, h, w] through the mean of their latents and back, beside themselves."""
    weights = vae.decoder.conv_in.weight
    parts = [part.to(weights) for part in pictures.split(BATCH)]
    outs = torch.cat([vae.decode(vae.encode(part).mean).float().cpu() for part in parts]).clamp(-1, 1)
    return [mean("VAE PSNR, dB", REAL, psnr(outs, pictures)), mean("VAE SSIM", REAL, ssim(outs, pictures))]


@dataclass(frozen=True)
class Judged:
    """Features of one picture per question, beside those of the captions that it is judged by."""

    pictures: Tensor                              # [n, d]
    captions: Tensor                              # [n, m, d]: of all concepts, each picture's in its own style
    own: Tensor                                   # [n], the place of its own

    @property
    def cosines(self) -> Tensor:
        """[n], with its own caption."""
        return cosine(self.pictures, self.captions[torch.arange(len(self.own)), self.own]).cpu()

    @property
    def ranks(self) -> Tensor:
        """[n], of its own caption."""
        return ranks(self.pictures, self.captions, self.own)

    @property
    def best(self) -> list[int]:
        """The places of the captions that fit best."""
        return (self.captions @ self.pictures[..., None]).squeeze(-1).argmax(dim=1).tolist()

    def where(self, chosen: Tensor) -> "Judged":
        """The pictures that are chosen by [n] booleans."""
        return Judged(self.pictures[chosen], self.captions[chosen], self.own[chosen])


def view(judge: Judge, exam: Exam, pictures: Tensor) -> Judged:
    """Features of one picture per question, [n, 3, h, w], and of all captions in the style of each."""
    captions = {style: judge.captions(words) for style, words in exam.captions.items()}
    return Judged(judge.pictures(pictures), torch.stack([captions[style] for style in exam.styles]),
                torch.arange(len(exam.questions)))


def fit_to_words(drawn: Judged, real: Judged, held_out: Tensor) -> Iterator[Figure]:
    """Retrieval and CLIP score of the drawn pictures, and of the real ones of the same combinations. Those that were
    trained on the judge may have by heart: what is held out is the honest comparison."""
    groups = {DRAWN: drawn, UNSEEN: drawn.where(held_out), REAL: real.where(held_out),
              SEEN: drawn.where(~held_out), TRAINED: real.where(~held_out)}
    groups = {name: group for name, group in groups.items() if len(group.own) > 1}
    for k in (1, 5):
        for name, group in groups.items():
            yield share(f"retrieval top-{k} of {len(drawn.own)}", name, within(group.ranks, k))
    for name, group in groups.items():
        yield mean("CLIP score", name, clip_score(group.cosines))
    for name, group in groups.items():
        yield mean("CLIP cosine", name, group.cosines)


def distances(drawn: Tensor, trained: Tensor, held_out: Tensor) -> list[Figure]:
    """Fréchet distances to the held-out pictures, all features [n, d] or [m, d]; the second is what to compare with:
    real pictures of the same concepts, as many as are drawn."""
    measure = f"Fréchet distance to {len(held_out)} held-out pictures"
    return [Figure(measure, DRAWN, frechet(drawn, held_out), len(drawn)),
            Figure(measure, TRAINED, frechet(trained, held_out), len(trained))]
