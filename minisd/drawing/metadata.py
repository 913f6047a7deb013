"""What made a picture, as its PNG carries it: A1111's `parameters` text for people and tools, and a JSON
chunk `minisd` from which the same picture is drawn again. Only text is read here, so torch is not needed."""

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minisd import schema
from minisd.drawing.control import EXACT, Fresh, Guide, Shortcuts
from minisd.drawing.plan import Drawing
from minisd.drawing.tags import Lora
from minisd.errors import BAD_FILE, MinisdError

CHUNK = "minisd"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 1 << 16                                # bytes of the JSON chunk; a longer one is not ours
MAX_CHUNKS = 100_000


@dataclass(frozen=True)
class Drawn:
    """A drawing, and by what and where it was drawn."""

    drawing: Drawing
    model: str                                    # the model's name, never its path
    model_sha256: str
    device: str
    dtype: str
    batch: int                                    # drawn together: kernels round differently for other sizes
    version: str                                  # of minisd


def chunks(drawn: Drawn) -> dict[str, str]:
    """The text chunks of a picture."""
    return {"parameters": a1111(drawn), CHUNK: json.dumps(asdict(drawn))}


def a1111(drawn: Drawn) -> str:
    """The text that A1111's web UI writes, and that many tools read; with its names where it has one."""
    what, recipe = drawn.drawing, drawn.drawing.recipe()
    settings: dict[str, str | float | None] = {
        "Steps": what.steps, "Sampler": recipe.display, "Schedule type": recipe.schedule_type,
        "CFG scale": what.guidance, "Image CFG scale": what.image_guidance, "Seed": what.seed,
        "Size": f"{what.width}x{what.height}", "Model hash": drawn.model_sha256[:10], "Model": drawn.model,
        **_shortened(what.shortcuts),
        **_begun(what), **_guided(what.guide), **_stirred(what.fresh),
        "Lora hashes": _hashes(what.loras),
        "TI hashes": ", ".join(f"{one.name}: {one.sha256[:12]}" for one in what.embeddings) or None,
        "Version": f"minisd {drawn.version}",
    }
    lines = [f"{what.prompt} {' '.join(f'<lora:{lora}>' for lora in what.loras)}" if what.loras else what.prompt]
    if what.negative:
        lines.append(f"Negative prompt: {what.negative}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None))
    return "\n".join(lines)


def _begun(what: Drawing) -> dict[str, str | float | None]:
    """What it began from, what was masked, how it was enlarged."""
    found: dict[str, str | float | None] = {}
    if what.start is not None:
        found |= {"Denoising strength": what.start.strength, "Init image hash": what.start.sha256[:10]}
    if what.mask is not None:
        alone = what.mask.padding is not None
        found |= {"Mask blur": what.mask.feather, "Mask hash": what.mask.sha256[:10],
                  "Inpaint area": "Only masked" if alone else None, "Masked area padding": what.mask.padding}
    if what.hires is not None:
        found |= {"Denoising strength": what.hires.strength, "Hires upscale": what.hires.upscale,
                  "Hires steps": what.hires.steps, "Hires upscaler": what.hires.upscaler.capitalize()}
    return found


def _guided(guide: Guide) -> dict[str, str | float | None]:
    """How guidance was changed; the web UI knows rescaling and thresholding by its extensions, the rest not at all."""
    return {
        "CFG Rescale": guide.rescale or None,
        "Dynamic thresholding enabled": None if guide.threshold is None else "True",
        "Threshold percentile": None if guide.threshold is None else f"{100 * guide.threshold:g}",
        "CFG ramp": " ".join(f"{share:g}" for share in guide.ramp) or None,
        "CFG interval": None if guide.interval is None else f"{guide.interval[0]:g} {guide.interval[1]:g}",
    }


def _stirred(fresh: Fresh) -> dict[str, str | float | None]:
    """Noise on the way."""
    if not fresh.churn:
        return {"Eta": fresh.eta}
    return {"Eta": fresh.eta, "Sigma churn": fresh.churn, "Sigma tmin": fresh.low or None, "Sigma tmax": fresh.high,
            "Sigma noise": fresh.noise if fresh.noise != 1 else None}


def _shortened(shortcuts: Shortcuts) -> dict[str, str | float | None]:
    """What was not computed in full; the web UI knows merging, and no reuse."""
    return {"Token merging ratio": shortcuts.merge or None,
            "Feature reuse": None if shortcuts.reuse == EXACT.reuse else shortcuts.reuse}


def _hashes(loras: Sequence[Lora]) -> str | None:
    """By which sites know them again; their names and strengths stand behind the prompt."""
    return ", ".join(f"{lora.name}: {lora.hash}" for lora in loras) or None


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ',:"\n') else value


def read_drawn(path: Path) -> Drawn:
    """How a picture was drawn, from its own file; every value is checked as if typed by hand."""
    data = read_json_chunk(path)
    try:
        return schema.read(Drawn, data, str(path))
    except MinisdError as error:
        error.code = BAD_FILE                     # a file's fault, though it reads like options
        raise


def read_json_chunk(path: Path) -> dict[str, Any]:
    """The JSON of a PNG's `minisd` chunk. The file may be a stranger's, so sizes are limited."""
    try:
        with path.open("rb") as file:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                raise MinisdError("not a PNG file", str(path), remedy="give a PNG that minisd has written")
            found = next(_texts(file), None)
        data = json.loads(found) if found is not None else None
    except (OSError, ValueError, RecursionError, struct.error) as error:
        raise MinisdError("the picture's metadata cannot be read", str(path), str(error)[:200]) from error
    if not isinstance(data, dict):
        raise MinisdError(f"the picture carries no {CHUNK!r} metadata", str(path),
                          "it was not written by minisd, or another program has stripped it", code=BAD_FILE)
    return data


def _texts(file: BinaryIO) -> Iterator[bytes]:
    """The `minisd` texts of an open PNG, found by walking over its chunks."""
    start = CHUNK.encode() + b"\0"
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IEND":
            return
        if kind != b"tEXt" or length > MAX_TEXT:
            file.seek(length + 4, 1)              # the checksum too
            continue
        body, checksum = file.read(length), file.read(4)
        if body.startswith(start):
            if struct.pack(">I", zlib.crc32(kind + body)) != checksum:
                raise ValueError("its checksum is wrong")
            yield body[len(start):]
