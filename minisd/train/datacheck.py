"""What a folder of pictures holds that would harm a training or is lost in it, found before hours are spent on it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from minisd.errors import MinisdError
from minisd.images import FORMATS, open_picture
from minisd.tokenizer import Tokenizer
from minisd.train.buckets import ORIENTATION, Bucket, assigned, kept_share
from minisd.train.rows import Row

SHOWN = 10                                        # files that are named for each finding
HARMFUL = ("broken", "no caption")


@dataclass
class Findings:
    """Files by what was found; a file may be under several headings. `lost` is the share of pixels cropped away."""

    pictures: int = 0
    files: dict[str, list[str]] = field(default_factory=dict)
    buckets: Counter[Bucket] = field(default_factory=Counter)
    lost: list[float] = field(default_factory=list)

    def note(self, heading: str, path: Path, why: str = "") -> None:
        self.files.setdefault(heading, []).append(f"{path.name}: {why}" if why else path.name)


def check(rows: Iterable[Row], buckets: Sequence[Bucket], tokenizer: Tokenizer) -> Findings:
    """Open every picture, as training would, and look at its captions."""
    found = Findings()
    for row in rows:
        found.pictures += 1
        for heading, why in (*of_captions(row, tokenizer), *of_file(row)):
            found.note(heading, row.path, why)
        size = size_of(row)
        if size is None:
            continue
        bucket = assigned(size, buckets)
        found.buckets[bucket] += 1
        found.lost.append(1 - kept_share(size, bucket))
        if size[0] < bucket.width or size[1] < bucket.height:
            found.note("smaller than trained on", row.path, f"{size[0]}x{size[1]} for {bucket}")
    return found


def of_captions(row: Row, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Captions that are missing, or longer than the text encoder's window."""
    if not any(caption.strip() for caption in row.captions):
        yield "no caption", ""
    for caption in row.captions:
        if (tokens := len(tokenizer.tokenize(caption))) > tokenizer.room:
            yield "caption is cut", f"{tokens} tokens, {tokenizer.room} fit"


def of_file(row: Row) -> Iterator[tuple[str, str]]:
    """What the file is, beyond plain 8-bit RGB; or that it cannot be read to its end."""
    try:
        open_picture(row.source())
    except MinisdError as fault:
        yield "broken", fault.why
        return
    with Image.open(row.source(), formats=FORMATS) as image:
        turned = image.getexif().get(ORIENTATION, 1)
        if turned not in (0, 1):
            yield "turned by EXIF", f"orientation {turned}; it is put upright"
        if image.has_transparency_data:
            yield "alpha", "it is laid over white"
        if image.mode.startswith(("I", "F")):
            yield "16-bit or float", f"mode {image.mode}; it is scaled to 8 bits"
        if image.mode in ("L", "1"):
            yield "grey", ""
        if has_more(image):
            yield "several frames", "the first is taken"


def has_more(image: Image.Image) -> bool:
    """Whether a frame follows the first."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def size_of(row: Row) -> tuple[int, int] | None:
    """Width and height as it is shown, or None where it cannot be read."""
    try:
        return open_picture(row.source()).size
    except MinisdError:
        return None


def report(found: Findings) -> str:
    """All findings in words: the harmful ones first, each with some of its files."""
    order = sorted(found.files, key=lambda heading: (heading not in HARMFUL, heading))
    lines = [f"{found.pictures} pictures"]
    for heading in order:
        files = found.files[heading]
        lines += [f"{heading}: {len(files)} ({100 * len(files) / found.pictures:.1f} %)",
                  *(f"  {file}" for file in files[:SHOWN]), *([f"  and {len(files) - SHOWN} more"]
                                                              if len(files) > SHOWN else [])]
    for bucket, count in sorted(found.buckets.items(), key=lambda pair: -pair[1]):
        lines.append(f"bucket {bucket}: {count}")
    if found.lost:
        lines.append(f"cropped away: {100 * sum(found.lost) / len(found.lost):.1f} % of the pixels on average, "
                     f"{100 * max(found.lost):.1f} % at most")
    return "\n".join(lines)
