"""Pictures with captions for the embedded model, made from emoji packages: python -m minisd.recipes.emoji_data OUT/

Four drawings of each thing. The folder, and the word that a caption says:

    3d      "3d"        Microsoft Fluent 3D, 256 px WebP (@lobehub/fluent-emoji-3d, MIT)
    flat    "flat"      Microsoft Fluent, flat SVG (fluentui-emoji, MIT)
    modern  "gradient"  Microsoft Fluent, coloured SVG shaded by gradients (fluentui-emoji, MIT)
    noto    "cartoon"   Google Noto Color Emoji, 136x128 bitmaps in a font (SIL Open Font License 1.1)

Labels, tags and groups are emojibase's (MIT). OUT/ receives packages/ (as downloaded), images/STYLE/CODEPOINTS.png (128x128, white
ground), metadata.jsonl (one row per picture) and sources.json (the sha256 of each package). The same packages give the same bytes.
"""

import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from minisd.errors import MinisdError
from minisd.recipes import emoji_words as words

SIZE, MARGIN = 128, 0.05  # side of a picture in pixels; white left free on each side
HELD_OUT = 0.065  # a concept's smallest of four digests lies below this for 24 % of concepts: 6 % of the pictures
TONES = (None, "light", "medium-light", "medium", "medium-dark", "dark")
FLUENT_3D, FLUENT_SVG, LABELS = "@lobehub/fluent-emoji-3d@1.1.0", "fluentui-emoji@1.3.0", "emojibase-data@17.0.0"
FONT = Path("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
Fluent = dict[str, bytes]

# Where Fluent's file is not called like emojibase's label.
RENAMED = {
    "enraged face": "pouting-face",
    "face with crossed-out eyes": "knocked-out-face",
    "smiling face with open hands": "hugging-face",
    "black bird": "blackbird",
    "phoenix": "phoenix-bird",
    "stuffed flatbread": "stuffedbread-flat",
    "merperson": "person-merpeople",
    "merman": "man-merpeople",
    "mermaid": "woman-merpeople",
    "woman: blond hair": "woman-blonde-hair",
    "man: blond hair": "man-blonde-hair",
    "people with bunny ears": "person-with-bunny-ears",
    "people wrestling": "person-wrestling",
}


@dataclass(frozen=True)
class Options:
    """Build a folder of emoji pictures with captions."""

    out: tyro.conf.Positional[Path]
    """Folder to fill; packages already in OUT/packages are not downloaded again."""
    all: bool = False
    """Take every emoji, flags, signs and skin tones (at weight 0.1) too."""


@dataclass(frozen=True)
class Emoji:
    """One thing to draw: a concept, and for the few that have them a skin tone."""

    concept: str
    codepoints: str  # lower-case hexadecimal joined by "-", without the variation selector fe0f
    group: str
    subgroup: str
    tags: tuple[str, ...] = field(default=())
    tone: str | None = None


def main(options: Options) -> None:
    """Download, draw, write the rows."""
    packages = options.out / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    sources = {name: npm_pack(name, packages) for name in (FLUENT_3D, FLUENT_SVG, LABELS)}
    font = noto_font(packages)
    emoji = chosen(unpack(sources[LABELS], r"/(en/data|meta/groups)\.json$"), everything=options.all)
    styles: dict[str, Callable[[Emoji], Image.Image | None]] = {
        "3d": fluent_3d(unpack(sources[FLUENT_3D], r"\.webp$")),
        "flat": fluent_svg(unpack(sources[FLUENT_SVG], r"/flat/.*\.svg$")),
        "modern": fluent_svg(unpack(sources[FLUENT_SVG], r"/modern/.*\.svg$")),
        "noto": noto(font),
    }
    common = Counter(tag for e in emoji if not e.tone for tag in e.tags)
    rows = []
    for style, draw in styles.items():
        (options.out / "images" / style).mkdir(parents=True, exist_ok=True)
        for e in tqdm(emoji, desc=style, unit="picture"):
            picture = draw(e)
            if picture is None:
                continue
            row = describe(e, style, common)
            squared(picture).save(options.out / row["file"])
            rows.append(row)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in sorted(rows, key=lambda row: row["file"])]
    (options.out / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in [*sources.values(), font]}
    (options.out / "sources.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    held = sum(row["split"] == "holdout" for row in rows)
    print(f"{len(rows)} pictures of {len({row['concept'] for row in rows})} concepts, {held} held out, in {options.out}")


# --- packages -------------------------------------------------------------------------------------------------------------------------


def run(command: list[str], folder: Path, remedy: str) -> None:
    """Run a program in a folder; its failure becomes one sentence with the remedy."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise MinisdError(f"{command[0]} is not installed", " ".join(command), str(error), remedy, code=4) from error
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise MinisdError(f"{command[0]} failed", " ".join(command), why, remedy, code=4) from error


def npm_pack(package: str, folder: Path) -> Path:
    """The archive of an npm package, "[@scope/]name@version", downloaded unless it is there."""
    path = folder / (package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not path.exists():
        run(["npm", "pack", "--silent", package], folder, f"install npm, or put {path.name} into {folder} yourself")
    return path


def noto_font(folder: Path) -> Path:
    """Noto Color Emoji: the installed one, or Debian's package downloaded and opened in the folder."""
    for root in (Path("/"), folder):
        if (root / FONT).exists():
            return root / FONT
    remedy = f"install the package fonts-noto-color-emoji, or put the font at {folder / FONT}"
    run(["apt-get", "download", "fonts-noto-color-emoji"], folder, remedy)
    archive = sorted(folder.glob("fonts-noto-color-emoji_*.deb"))[-1]
    run(["dpkg-deb", "--extract", archive.name, "."], folder, remedy)
    return folder / FONT


def unpack(archive: Path, pattern: str) -> dict[str, bytes]:
    """The files of a .tgz whose path matches, by their last name without the ending."""
    with tarfile.open(archive) as tar:
        wanted = (member for member in tar if re.search(pattern, member.name))
        return {Path(member.name).stem: tar.extractfile(member).read() for member in wanted}  # type: ignore[union-attr]


# --- which emoji ----------------------------------------------------------------------------------------------------------------------


def chosen(files: dict[str, bytes], everything: bool) -> list[Emoji]:
    """emojibase's list, thinned by `emoji_words` unless everything is asked for."""
    names = json.loads(files["groups"])
    found = [e for entry in json.loads(files["data"]) if "group" in entry for e in expand(entry, names, everything)]
    unknown = sorted((words.CORE | {concept for concept, _ in words.HOLDOUT} | set(words.ALIASES)) - {e.concept for e in found})
    if unknown:
        raise MinisdError("names that emojibase does not have", "emoji_words.py", ", ".join(unknown), "write them as emojibase does")
    return found if everything else [e for e in found if wanted(e)]


def expand(entry: dict[str, Any], names: dict[str, Any], everything: bool) -> Iterator[Emoji]:
    """The emoji of an entry of emojibase's data, followed by its skin tones when everything is asked for."""
    for form in [entry, *(entry.get("skins", []) if everything else [])]:
        tone = form.get("tone")
        if isinstance(tone, list):  # two people of two tones
            continue
        yield Emoji(
            concept=entry["label"],
            codepoints=bare(form["hexcode"]),
            group=names["groups"][str(entry["group"])],
            subgroup=names["subgroups"][str(entry["subgroup"])],
            tags=tuple(entry.get("tags", ())),
            tone=TONES[tone or 0],
        )


def wanted(e: Emoji) -> bool:
    """Whether an emoji belongs to the well-chosen ones: things, not signs, and each only once."""
    if e.group in words.DROPPED_GROUPS or e.subgroup in words.DROPPED_SUBGROUPS:
        return re.fullmatch(words.COLOURED, e.concept) is not None
    return re.fullmatch(words.DROPPED, e.concept) is None


def bare(codepoints: str) -> str:
    """Lower-case code points without fe0f, which some sources write and others leave out."""
    return "-".join(c for c in codepoints.lower().split("-") if c != "fe0f")


# --- captions and the split -----------------------------------------------------------------------------------------------------------


def describe(e: Emoji, style: str, common: Counter[str]) -> dict[str, Any]:
    """The row of metadata.jsonl."""
    return {
        "file": f"images/{style}/{e.codepoints}.png",
        "concept": e.concept,
        "style": style,
        "captions": captions(e, style, common),
        "group": e.group,
        "tags": list(e.tags),
        "split": "holdout" if held_out(e.concept, style) else "train",
        "weight": 0.1 if e.tone else 1.0,
        "core": e.concept in words.CORE and not e.tone,
    }


def captions(e: Emoji, style: str, common: Counter[str]) -> list[str]:
    """What a user may type for this picture, the plain ways first. `common` counts a tag's uses: category words are the frequent ones."""
    word = words.STYLE_WORDS[style]
    label = spoken(e.concept)
    thing = with_article(e.concept, label)
    if e.tone:
        label, thing = f"{label} with {e.tone} skin", f"{thing} with {e.tone} skin"
    plain = [f"{label}, {word}", f"{thing}, {word}"]
    alias = words.ALIASES.get(e.concept)
    if alias:
        plain += [f"{with_article(alias, alias)}, {word}"]
    said = set(re.findall(r"\w+", label))
    telling = (tag for tag in set(e.tags) - said - words.DULL_TAGS if common[tag] >= 8)
    kinds = sorted(telling, key=lambda tag: (-common[tag], tag))[:2]
    category = ", ".join(kinds or [words.GROUP_WORDS.get(e.group, e.group)])
    styled = f"a {word} {label}" if thing != label else f"{word} {label}"
    rest = [styled, f"a {word} emoji of {thing}", thing, f"{label}, {category}, {word}"]
    rest += [f"{thing}, {words.GROUP_WORDS.get(e.group, e.group)}, {word} style"]
    return list(dict.fromkeys(plain + rest))[:8]


def spoken(concept: str) -> str:
    """A label as it would be typed: "man: red hair" is a man with red hair, "woman: bald" a bald woman."""
    label = concept.lower().replace("’", "'")
    label = re.sub(r"^(\w+): bald$", r"bald \1", label)
    return re.sub(r"^(man|woman|person): ", r"\1 with ", label)


def with_article(name: str, text: str) -> str:
    """ "a banana", "an orange", "grapes": the text with the article that the name asks for."""
    if name in words.BARE:
        return text
    head = re.split(r" (?:with|in|of|on|behind|under|over|without|for|at|and)\b|[:,]", text)[0]
    if re.search(r"[^sui]s$", head) and not re.search(r"(?:lens|rhinoceros|ies of|canvas|atlas|christmas)$", head):
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
    return digest(concept, style) < HELD_OUT and style == min(words.STYLE_WORDS, key=lambda s: digest(concept, s))


# --- pictures -------------------------------------------------------------------------------------------------------------------------


def fluent_3d(files: Fluent) -> Callable[[Emoji], Image.Image | None]:
    """Fluent's 3D pictures, found by code points."""
    by_codepoints = {bare(name): data for name, data in files.items()}

    def draw(e: Emoji) -> Image.Image | None:
        data = by_codepoints.get(e.codepoints)
        return Image.open(io.BytesIO(data)) if data else None

    return draw


def fluent_svg(files: Fluent) -> Callable[[Emoji], Image.Image | None]:
    """Fluent's SVG, found by label, drawn at twice the size."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise MinisdError("resvg-py is not installed", "drawing SVG", str(error), "pip install 'minisd[data]'", code=4) from error

    def draw(e: Emoji) -> Image.Image | None:
        ending = f"-{e.tone}" if e.tone else "-default"
        stems = [RENAMED.get(e.concept, slug(e.concept)), f"person-{slug(e.concept)}", re.sub(r"^(\w+)-(.*)$", r"\2-\1", slug(e.concept))]
        names = [stem + ending for stem in stems] + ([] if e.tone else stems)
        data = next((files[name] for name in names if name in files), None)
        if data is None:
            return None
        return Image.open(io.BytesIO(svg_to_bytes(svg_string=data.decode(), width=2 * SIZE, height=2 * SIZE, skip_system_fonts=True)))

    return draw


def slug(label: str) -> str:
    """A label as Fluent's files are called: "jack-o-lantern", "womans-boot", "pinata"."""
    letters = unicodedata.normalize("NFKD", label.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", letters.replace("'", "")).strip("-")


def noto(font: Path) -> Callable[[Emoji], Image.Image | None]:
    """Noto's bitmaps: a glyph by its code point, or by the ligature that joins several."""
    try:
        from fontTools.ttLib import TTFont
    except ImportError as error:
        raise MinisdError("fonttools is not installed", "reading the font", str(error), "pip install 'minisd[data]'", code=4) from error
    opened = TTFont(font)
    bitmaps, glyphs = opened["CBDT"].strikeData[0], opened.getBestCmap()
    tables = (table for lookup in opened["GSUB"].table.LookupList.Lookup if lookup.LookupType == 4 for table in lookup.SubTable)
    joined = {(first, *lig.Component): lig.LigGlyph for table in tables for first, ligs in table.ligatures.items() for lig in ligs}

    def draw(e: Emoji) -> Image.Image | None:
        names = tuple(glyphs.get(int(c, 16), "") for c in e.codepoints.split("-"))
        name = names[0] if len(names) == 1 else joined.get(names, "")
        return Image.open(io.BytesIO(bitmaps[name].imageData)) if name in bitmaps else None

    return draw


def squared(picture: Image.Image, size: int = SIZE, margin: float = MARGIN) -> Image.Image:
    """Cut to what is drawn, centre it in a square with a margin, resample, lay on white: RGB.

    Resampling and laying work on premultiplied colour ("RGBa"); otherwise the colour of clear pixels would seep in as a dark fringe.
    """
    rgba = picture.convert("RGBA")
    box = rgba.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        raise MinisdError("a picture with nothing in it", "emoji_data", "every pixel is clear", "remove the package and download it again")
    width, height = box[2] - box[0], box[3] - box[1]
    side = max(width, height) / (1 - 2 * margin)
    left, top = (box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2
    pad = int(np.ceil(side))  # so that the square lies inside whatever the picture's own edge
    canvas = Image.new("RGBa", (rgba.width + 2 * pad, rgba.height + 2 * pad))
    canvas.paste(rgba.convert("RGBa"), (pad, pad))
    square = (left + pad, top + pad, left + pad + side, top + pad + side)
    small = np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS, box=square), dtype=np.int16)
    return Image.fromarray(np.clip(small[..., :3] + 255 - small[..., 3:], 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main(tyro.cli(Options))
