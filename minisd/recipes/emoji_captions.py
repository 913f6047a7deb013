"""What is typed for a picture of an emoji, and which pictures are kept from training."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass

from minisd.recipes import emoji_words as words

# A concept's smallest of four digests lies below this for 24 % of the concepts: 6 % of the pictures.
HELD_OUT = 0.065


@dataclass(frozen=True)
class Emoji:
    """One thing to draw: a concept, and for the few that have them a skin tone."""

    concept: str
    codepoints: str  # as `bare` writes them
    group: str
    subgroup: str
    tags: tuple[str, ...] = ()
    tone: str | None = None


def bare(codepoints: str) -> str:
    """Lower-case hexadecimal joined by "-", without fe0f, which some sources write and others leave out."""
    return "-".join(c for c in codepoints.lower().split("-") if c != "fe0f")


def captions(e: Emoji, style: str, common: Counter[str]) -> list[str]:
    """What a user may type for this picture, the plain ways first.

    `common` counts how many emoji bear a tag: the words for a category ("fruit") are the frequent ones.
    """
    word = words.STYLE_WORDS[style]
    label = spoken(e.concept)
    thing = with_article(e.concept, label)
    styled = f"a {word} {label}" if thing != label else f"{word} {label}"
    if e.tone:
        label, thing, styled = (f"{text} with {e.tone} skin" for text in (label, thing, styled))
    plain = [f"{label}, {word}", f"{thing}, {word}"]
    alias = words.ALIASES.get(e.concept)
    if alias:
        plain += [f"{with_article(alias, alias)}, {word}"]
    said = set(re.findall(r"\w+", label))
    telling = (tag for tag in set(e.tags) - said - words.DULL_TAGS if common[tag] >= 8)
    kinds = sorted(telling, key=lambda tag: (-common[tag], tag))[:2]
    group = words.GROUP_WORDS.get(e.group, e.group)
    rest = [styled, f"a {word} emoji of {thing}", thing, f"{label}, {', '.join(kinds or [group])}, {word}"]
    return list(dict.fromkeys([*plain, *rest, f"{thing}, {group}, {word} style"]))[:8]


def spoken(concept: str) -> str:
    """A label as it would be typed: "man: red hair" is a man with red hair, "woman: bald" a bald woman."""
    label = concept.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    label = re.sub(r"^(\w+): bald$", r"bald \1", label)
    return re.sub(r"^(man|woman|person): ", r"\1 with ", label)


def with_article(name: str, text: str) -> str:
    """The text with the article that the name asks for: "a banana", "an orange", "grapes"."""
    if name in words.BARE:
        return text
    head = re.split(r" (?:with|in|of|on|behind|under|over|without|for|at|and)\b|[:,]", text)[0]
    if re.search(r"[^sui]s$", head) and not re.search(r"(?:lens|rhinoceros|canvas|atlas|christmas)$", head):
        return text
    sounds_like_you = re.match(r"uni(?!m)|eu|ew|ufo|use|utens|one\b|once", text)
    vowel = re.match(r"[aeiou]|hourglass|x-ray|8", text) and not sounds_like_you
    return f"an {text}" if vowel else f"a {text}"


def digest(concept: str, style: str) -> float:
    """A number in [0, 1) that depends on nothing but the two words."""
    return int.from_bytes(hashlib.sha256(f"{concept}/{style}".encode()).digest()[:8], "big") / 2**64


def held_out(concept: str, style: str) -> bool:
    """Whether training never sees this concept in this style; true for at most one style of a concept."""
    forced = {s for c, s in words.HOLDOUT if c == concept}
    if forced:
        return style in forced
    smallest = min(words.STYLE_WORDS, key=lambda s: digest(concept, s))
    return style == smallest and digest(concept, style) < HELD_OUT


def split(concept: str, style: str) -> str:
    """One of "train", "holdout", and "twin": not held out, but it would give away a picture that is."""
    if held_out(concept, style):
        return "holdout"
    twin = words.TWINS.get(style)
    return "twin" if twin and held_out(concept, twin) else "train"
