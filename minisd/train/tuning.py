"""What a recipe says of making a model one's own: a table for each method, and what all of them share."""

from dataclasses import dataclass

from minisd.train.bounds import within


@dataclass(frozen=True)
class Prior:
    """Prior preservation (Ruiz et al., DreamBooth, arXiv 2208.12242, eq. 2): what the model drew before stays drawn.

    The class pictures are drawn by the model itself, as it likes to, before it learns; each once for all runs.
    """

    prompt: str                                   # of the class, such as "a dog"
    count: int = 100                              # class pictures
    weight: float = 1.0                           # of their error beside the subject's

    def __post_init__(self) -> None:
        within("prior.count", self.count, 1)
        within("prior.weight", self.weight, 0)


@dataclass(frozen=True)
class Tuning:
    """How the error is taken, whatever it trains."""

    empty_captions: float = 0.1                   # probability of no words, for classifier-free guidance
    min_snr: float | None = None                  # gamma of min-SNR weighting (arXiv 2303.09556)
    offset_noise: float = 0.0
    shift: float = 1.0                            # above 1, timesteps are drawn noisier (arXiv 2403.03206, eq. 23)
    prior: Prior | None = None

    def __post_init__(self) -> None:
        within("empty_captions", self.empty_captions, 0, 1)
        within("min_snr", self.min_snr or 1, 1e-6)
        within("offset_noise", self.offset_noise, 0)
        within("shift", self.shift, 1e-6)


@dataclass(frozen=True)
class LoRATask(Tuning):
    """Low-rank side paths (arXiv 2106.09685). Targets are the words of `tasks.lora.TARGETS`, or patterns of paths."""

    rank: int = 16
    alpha: float | None = None                    # the side path is scaled by alpha / rank; None = rank
    targets: tuple[str, ...] = ("attention",)     # in the UNet
    text_targets: tuple[str, ...] = ("attention",)
    text_rate: float = 0.2                        # times the learning rate, in the text encoder; 0 = it stays

    def __post_init__(self) -> None:
        super().__post_init__()
        within("rank", self.rank, 1)
        within("text_rate", self.text_rate, 0)
        if not self.targets and not (self.text_rate and self.text_targets):
            raise ValueError("targets and text_targets are empty: there is nothing to train")


@dataclass(frozen=True)
class DreamBoothTask(Tuning):
    """The whole UNet, and the text encoder where it has a rate (arXiv 2208.12242)."""

    text_rate: float = 0.0                        # times the learning rate, in the text encoder; 0 = it stays

    def __post_init__(self) -> None:
        super().__post_init__()
        within("text_rate", self.text_rate, 0)


@dataclass(frozen=True)
class TextualInversionTask(Tuning):
    """A new word's vectors alone (arXiv 2208.01618); `data.alias` or `data.captions` have to say it."""

    word: str = "<new>"
    vectors: int = 1                              # tokens that it becomes
    start: str = "*"                              # words whose vectors it begins with, in turn
    empty_captions: float = 0.0                   # no words teach a word nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        within("vectors", self.vectors, 1)


@dataclass(frozen=True)
class CustomDiffusionTask(Tuning):
    """Keys and values of the UNet's cross-attentions alone (Kumari et al., arXiv 2212.04488, section 3.2)."""
