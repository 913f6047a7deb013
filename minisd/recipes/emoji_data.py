"""Pictures with captions for the embedded model, made from emoji packages.

    python -m minisd.recipes.emoji_data OUT/

Four drawings of each thing. The folder, and the word that a caption says:

    3d      "3d"        Microsoft Fluent 3D, 256 px WebP (@lobehub/fluent-emoji-3d, MIT)
    flat    "flat"      Microsoft Fluent, flat SVG (fluentui-emoji, MIT)
    modern  "gradient"  Microsoft Fluent, coloured SVG shaded by gradients (fluentui-emoji, MIT)
    noto    "cartoon"   Google Noto Color Emoji, 136x128 bitmaps in a font (SIL Open Font License 1.1)

Labels, tags and groups are emojibase's (MIT). OUT/ receives packages/ (as downloaded), sources.json (the sha256
of each), images/STYLE/CODEPOINTS.png (128x128, white ground) and metadata.jsonl, one row per picture. The same
packages give the same bytes. A row's `split` is "train", "holdout", or "twin": 3d and modern are nearly the same
picture (27 dB apart; flat is 20 and noto 12 dB from both), so where one is held out the other is kept from
training too, and not measured either.
"""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from minisd.errors import RESOURCE, MinisdError
from minisd.recipes import emoji_words as words
from minisd.recipes.emoji_captions import Emoji, bare, captions, split
from minisd.recipes.emoji_pictures import Draw, fluent_3d, fluent_svg, noto, squared

TONES = (None, "light", "medium-light", "medium", "medium-dark", "dark")
FLUENT_3D, FLUENT_SVG = "@lobehub/fluent-emoji-3d@1.1.0", "fluentui-emoji@1.3.0"
LABELS = "emojibase-data@17.0.0"
FONT = Path("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


@dataclass(frozen=True)
class Options:
    """Build a folder of emoji pictures with captions."""

    out: tyro.conf.Positional[Path]
    """Folder to fill; packages already in OUT/packages are not downloaded again."""
    all: bool = False
    """Take every emoji, with the flags, the signs and (at weight 0.1) the skin tones."""


def main(options: Options) -> None:
    """Download, draw, write the rows."""
    packages = options.out / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    sources = {name: npm_pack(name, packages) for name in (FLUENT_3D, FLUENT_SVG, LABELS)}
    font = noto_font(packages)
    emoji = chosen(unpack(sources[LABELS], r"/(en/data|meta/groups)\.json$"), everything=options.all)
    styles: dict[str, Draw] = {
        "3d": fluent_3d(unpack(sources[FLUENT_3D], r"\.webp$")),
        "flat": fluent_svg(unpack(sources[FLUENT_SVG], r"/flat/.*\.svg$")),
        "modern": fluent_svg(unpack(sources[FLUENT_SVG], r"/modern/.*\.svg$")),
        "noto": noto(font),
    }
    rows = sorted(drawn(emoji, styles, options.out), key=lambda row: row["file"])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (options.out / "metadata.jsonl").write_text(lines, encoding="utf-8")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in [*sources.values(), font]}
    (options.out / "sources.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    held, concepts = sum(row["split"] == "holdout" for row in rows), {row["concept"] for row in rows}
    print(f"{len(rows)} pictures of {len(concepts)} concepts, {held} held out, in {options.out}")


def drawn(emoji: list[Emoji], styles: dict[str, Draw], out: Path) -> Iterator[dict[str, Any]]:
    """The rows, each after its picture has been written."""
    common = Counter(tag for e in emoji if not e.tone for tag in e.tags)
    for style, draw in styles.items():
        (out / "images" / style).mkdir(parents=True, exist_ok=True)
        for e in tqdm(emoji, desc=style, unit="picture"):
            picture = draw(e)
            if picture is not None:
                row = describe(e, style, common)
                squared(picture).save(out / row["file"])
                yield row


def run(command: list[str], folder: Path, remedy: str) -> None:
    """Run a program in a folder; its failure becomes one error with the remedy."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        what = f"{command[0]} is not installed"
        raise MinisdError(what, " ".join(command), str(error), remedy, RESOURCE) from error
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise MinisdError(f"{command[0]} failed", " ".join(command), why, remedy, RESOURCE) from error


def npm_pack(package: str, folder: Path) -> Path:
    """The archive of an npm package, "[@scope/]name@version", downloaded unless it is there."""
    path = folder / (package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not path.exists():
        remedy = f"install npm, or put {path.name} into {folder} yourself"
        run(["npm", "pack", "--silent", package], folder, remedy)
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
        found = ((member.name, tar.extractfile(member)) for member in tar if re.search(pattern, member.name))
        return {Path(name).stem: file.read() for name, file in found if file}


def chosen(files: dict[str, bytes], everything: bool) -> list[Emoji]:
    """emojibase's list, thinned by `emoji_words` unless everything is asked for."""
    names = json.loads(files["groups"])
    entries = [entry for entry in json.loads(files["data"]) if "group" in entry]  # the letters of flags have none
    found = [e for entry in entries for e in expand(entry, names, everything)]
    used = words.CORE | set(words.ALIASES) | {concept for concept, _ in words.HOLDOUT}
    unknown = ", ".join(sorted(used - {e.concept for e in found}))
    if unknown:
        what, remedy = "names that emojibase does not have", "write them as emojibase does"
        raise MinisdError(what, "minisd/recipes/emoji_words.py", unknown, remedy)
    return found if everything else [e for e in found if wanted(e)]


def expand(entry: dict[str, Any], names: dict[str, Any], everything: bool) -> Iterator[Emoji]:
    """The emoji of an entry of emojibase's data, followed by its skin tones when everything is asked for."""
    for form in [entry, *(entry.get("skins", []) if everything else [])]:
        tone = form.get("tone", 0)
        if isinstance(tone, list):  # two people of two tones
            continue
        yield Emoji(
            concept=entry["label"],
            codepoints=bare(form["hexcode"]),
            group=names["groups"][str(entry["group"])],
            subgroup=names["subgroups"][str(entry["subgroup"])],
            tags=tuple(entry.get("tags", ())),
            tone=TONES[tone],
        )


def wanted(e: Emoji) -> bool:
    """Whether an emoji belongs to the well-chosen ones: things, not signs, and each only once."""
    if e.group in words.DROPPED_GROUPS or e.subgroup in words.DROPPED_SUBGROUPS:
        return re.fullmatch(words.COLOURED, e.concept) is not None
    return re.fullmatch(words.DROPPED, e.concept) is None


def describe(e: Emoji, style: str, common: Counter[str]) -> dict[str, Any]:
    """The row of metadata.jsonl; `core` marks the things to begin training on."""
    return {
        "file": f"images/{style}/{e.codepoints}.png",
        "concept": e.concept,
        "style": style,
        "captions": captions(e, style, common),
        "group": e.group,
        "tags": list(e.tags),
        "split": split(e.concept, style),
        "weight": 0.1 if e.tone else 1.0,
        "core": e.concept in words.CORE and not e.tone,
    }


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except MinisdError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.code) from error
