"""LoRAs as people ask for them: `<lora:style:0.8>` in a prompt, as in A1111, or `--lora style:0.8`. No torch.

| written              | how much of the LoRA is added; 1 is as trained, 0 nothing                     |
|----------------------|-------------------------------------------------------------------------------|
| `style`              | 1                                                                             |
| `style:0.8`          | 0.8                                                                           |
| `style:0.5:0.8`      | 0.5 in the text encoders, 0.8 in the UNet                                     |
| `style:0.8:te=0.5`   | the same; `unet=` is the UNet's                                               |
| `style:1:in=0:mid=0` | of the UNet 0 on the way down and in the middle, 1 on the way up (`out=`)     |
| `style:1:in=0,0,1,1` | on the way down by stages, one number for each in the order they are passed   |

Words and places are A1111's, `in`, `mid` and `out` are SD.Next's; stages one by one are ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minisd.drawing.ranges import check_sha256, in_range
from minisd.errors import USAGE, MinisdError

STRENGTHS = (-100.0, 100.0)
TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>")     # A1111 knows LyCORIS files by either word
NAME = re.compile(r"[^<>:\"\\\x00-\x1f\x7f]{1,200}")
HASH = re.compile("[0-9a-f]{12}")
WORDS = ("te", "unet", "in", "mid", "out")


class Kind(NamedTuple):
    """A kind of file that drawings name: what it is called, and the option that gives one."""

    noun: str
    a_noun: str
    option: str


LORA, EMBEDDING = Kind("LoRA", "a LoRA", "--lora"), Kind("embedding", "an embedding", "--embedding")


@dataclass(frozen=True)
class Strength:
    """How much of a LoRA is added where. In the UNet () and None are as `unet` says."""

    text: float = 1.0
    unet: float = 1.0
    down: tuple[float, ...] = ()                  # one number for all stages, or one for each as they are passed
    mid: float | None = None
    up: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for value in (self.text, self.unet, *self.down, *self.up, *(() if self.mid is None else (self.mid,))):
            in_range("lora", value, *STRENGTHS)

    def check_stages(self, stages: int) -> None:
        """Refuses numbers for more or fewer stages than a UNet has."""
        for word, values in (("in", self.down), ("out", self.up)):
            if len(values) not in (0, 1, stages):
                raise MinisdError(f"a LoRA with {len(values)} numbers for {word}=", "--lora",
                                  f"the UNet has {stages} stages", "give one number, or one for each stage", USAGE)

    def patterns(self) -> dict[str, float]:
        """Strengths by patterns of the UNet's module paths, of which the last that matches counts."""
        found = {"*": self.unet}
        for way, values in (("down", self.down), ("up", self.up)):
            found |= {f"{way}.*": values[0]} if len(values) == 1 else {f"{way}.{n}.*": value
                                                                       for n, value in enumerate(values)}
        return found if self.mid is None else {**found, "mid.*": self.mid}

    def __str__(self) -> str:
        """As it is written behind a name."""
        words = [shown(self.unet)] if self.text == self.unet else [shown(self.text), shown(self.unet)]
        ways = {"in": self.down, "mid": () if self.mid is None else (self.mid,), "out": self.up}
        return ":".join([*words, *(f"{way}={','.join(map(shown, values))}" for way, values in ways.items() if values)])


class Ask(NamedTuple):
    """A LoRA's name, or its file where the command line names it, and how much of it is wanted."""

    name: str
    strength: Strength


@dataclass(frozen=True)
class Lora:
    """A LoRA that a picture is drawn with."""

    name: str
    sha256: str                                   # of its file
    hash: str                                     # A1111's: of the tensors alone, without what the file says of them
    strength: Strength = Strength()

    def __post_init__(self) -> None:
        check_name(self.name)
        check_sha256(self.sha256)
        if not HASH.fullmatch(self.hash):
            raise MinisdError(f"{self.hash[:40]!r} is not the hash of a LoRA", remedy="give 12 hexadecimal digits",
                              code=USAGE)

    def __str__(self) -> str:
        return f"{self.name}:{self.strength}"


@dataclass(frozen=True)
class Embedding:
    """An embedding (textual inversion) whose word a picture's prompts say."""

    name: str
    sha256: str                                   # of its file

    def __post_init__(self) -> None:
        check_name(self.name, EMBEDDING)
        check_sha256(self.sha256)


def check_name(name: str, kind: Kind = LORA) -> None:
    """Refuses names that tags cannot say, and paths that lead out of a folder: files of strangers hold names, too."""
    if not NAME.fullmatch(name) or name.startswith("/") or ".." in name.split("/"):
        raise MinisdError(f"{name[:60]!r} cannot be the name of {kind.a_noun}", kind.option, "it leads elsewhere, or "
                          'has one of < > : " \\', "rename the file, or give another name", USAGE)


def check_alone(files: Sequence[Lora] | Sequence[Embedding], kind: Kind = LORA) -> None:
    """Refuses a file that is asked for twice."""
    seen: dict[str, str] = {}
    for one in files:
        if one.sha256 in seen:
            where = kind.option if one.name == seen[one.sha256] else f"as {seen[one.sha256]!r}, too"
            raise MinisdError(f"the {kind.noun} {one.name!r} is given twice", where, remedy="give it once", code=USAGE)
        seen[one.sha256] = one.name


# ---------------------------------------------------------------- reading
def taken_out(prompt: str) -> tuple[str, list[Ask]]:
    """A prompt without its tags, and what they ask for."""
    tags = TAG.findall(prompt)
    return (TAG.sub("", prompt).strip(), [read_ask(tag) for tag in tags]) if tags else (prompt, [])


def read_ask(text: str) -> Ask:
    """What stands in a tag, or behind --lora. A name may have colons, as paths of Windows do."""
    words = text.split(":")
    begin = next((n for n, word in enumerate(words) if n and ("=" in word or number(word) is not None)), len(words))
    name, rest = ":".join(words[:begin]), words[begin:]
    if not name.strip():
        raise unread(text, "it has no name")
    plain = [word for word in rest if "=" not in word]
    named = dict(part(word, text) for word in rest[len(plain):])
    numbers = [number(word) for word in plain]
    if rest[:len(plain)] != plain or None in numbers or len(plain) > 2 or len(named) < len(rest) - len(plain):
        raise unread(text, "numbers come first, at most two, then words, each once")
    both = [value for value in numbers if value is not None] or [1.0]
    text_value, unet = one(named, "te", both[0], text), one(named, "unet", both[-1], text)
    mid = one(named, "mid", unet, text) if "mid" in named else None
    return Ask(name.strip(), Strength(text_value, unet, named.get("in", ()), mid, named.get("out", ())))


def part(word: str, text: str) -> tuple[str, tuple[float, ...]]:
    """A word and its numbers."""
    key, _, values = word.partition("=")
    found = [number(value) for value in values.split(",")]
    if key.strip() not in WORDS or None in found:
        raise unread(text, f"{word[:40]!r} is none of {', '.join(f'{known}=NUMBER' for known in WORDS)}")
    return key.strip(), tuple(value for value in found if value is not None)


def one(named: dict[str, tuple[float, ...]], word: str, other: float, text: str) -> float:
    """The only number of a word, or the other one where the word is not given."""
    values = named.get(word, (other,))
    if len(values) != 1:
        raise unread(text, f"{word}= takes one number")
    return values[0]


def number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def shown(value: float) -> str:
    """Every digit, and no more than a person would write."""
    return repr(float(value)).removesuffix(".0")


def unread(text: str, why: str) -> MinisdError:
    return MinisdError(f"a LoRA cannot be read from {text[:80]!r}", why=why,
                       remedy="give NAME, NAME:0.8 or NAME:0.8:te=0.5:in=1:mid=0:out=0.5", code=USAGE)
