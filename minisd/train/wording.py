"""Captions as a recipe wants them: others in their place, some tags kept or dropped, a rare word put before them."""

from collections.abc import Iterable

from minisd.train.config import DataConfig


def reworded(captions: Iterable[str], cfg: DataConfig) -> tuple[str, ...]:
    """A picture's captions by the config, the plainest first and each once; "" where nothing is left."""
    if not (cfg.captions or cfg.keep_tags or cfg.drop_tags or cfg.alias):
        return tuple(captions)
    changed = [", ".join(part for part in (cfg.alias, chosen(caption, cfg)) if part)
               for caption in cfg.captions or captions]
    return tuple(dict.fromkeys(changed))


def chosen(caption: str, cfg: DataConfig) -> str:
    """The tags, which commas part, that the lists leave; without lists the caption as it is."""
    if not cfg.keep_tags and not cfg.drop_tags:
        return caption
    keep, drop = ({plain(tag) for tag in tags} for tags in (cfg.keep_tags, cfg.drop_tags))
    tags = [tag.strip() for tag in caption.split(",")]
    return ", ".join(tag for tag in tags if tag and plain(tag) not in drop and (not keep or plain(tag) in keep))


def plain(tag: str) -> str:
    """Case does not tell tags apart, and an underscore is a space: taggers write either."""
    return " ".join(tag.lower().replace("_", " ").split())
