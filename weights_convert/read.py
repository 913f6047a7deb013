"""Any checkpoint file into tensors: recognised by its first bytes, never by its name, and never run.

safetensors go through `header`, PyTorch's .ckpt, .pt and .bin through `ckpt`. Everything that is wrong with a file is a
MinisdError with code 3.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from minisd.errors import MinisdError
from weights_convert import ckpt, header
from weights_convert.mapped import Mapped, Seen, Span, map_file, refused, shown

AGAIN = "download it again, as a file and not as a page"
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
OTHERS = (                                         # first bytes, what that is, what to do
    (b"version https://git-lfs", "a Git LFS pointer, not the weights", "run: git lfs pull"),
    (b"<", "an HTML or XML page, not a checkpoint", AGAIN),
    (b"[", "a JSON text, not a checkpoint", AGAIN),
    (b"{", "a JSON text, not a checkpoint", "give the weights; an index file is read with its folder"),
    (b"GGUF", "a GGUF file, which is not read", "use the .safetensors of the same model"),
    (b"\x1f\x8b", "a gzip archive, not a checkpoint", "unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive, not a checkpoint", "unpack it first"),
    (b"Rar!", "a RAR archive, not a checkpoint", "unpack it first"),
)
LEGACY = ("in a Python with PyTorch, if you trust the file: torch.save(torch.load(old, weights_only=True), new); "
          "the new file is read")
# Hashes of all bytes behind the header: by the ModelSpec of Stability AI, and by kohya's trainers.
DATA_HASHES = ("modelspec.hash_sha256", "sshs_model_hash")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file's tensors, which lie in the mapped file, and what else it says.

    `notes` are sentences about what was ignored or is unusual.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, str]
    notes: list[str]
    format: Literal["safetensors", "ckpt"]
    seen: Seen


def read_file(path: str | Path, *, copy: bool = False, verify: bool = True) -> Checkpoint:
    """The tensors of a .safetensors or .ckpt file, whatever it is called.

    `copy` reads the file instead of mapping it; `verify=False` skips hashes beside the file and in its metadata.
    """
    file = map_file(path, copy)
    if verify:
        check_sidecar(file)
    if file.memory[:4] == ZIP:
        tensors, notes = ckpt.read(file)
        return Checkpoint(tensors, {}, notes, "ckpt", file.seen)
    if (fault := foreign(file)) is not None:
        raise fault
    entries, metadata = header.read_header(file)
    if verify:
        check_data(file, metadata)
    spans = {one: Span(one.begin, one.end, len(one.shape) == 4) for one in entries}
    held = {one.name: window.tensor(one.dtype, one.shape, one.begin) for one, window in file.windows(spans)}
    tensors = {one.name: held[one.name] for one in entries}
    return Checkpoint(tensors, metadata, unusual(entries), "safetensors", file.seen)


def foreign(file: Mapped) -> MinisdError | None:
    """What a file is that is no safetensors; those have their header's length and then a brace."""
    start = file.memory[:1024]
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2 ** 63:
        return None
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what, remedy in OTHERS:
        if text.startswith(magic):
            return file.refused(what, f"it begins with {shown(text[:40].decode('utf-8', 'replace'))}", remedy)
    if start.startswith(PICKLE) or start[257:262] == b"ustar":
        return file.refused("a .ckpt of the old kind, a bare pickle: it is not read, because that would run it",
                            "PyTorch 1.6 and later write another kind", LEGACY)
    if len(file) < 9:
        return file.refused("the file is cut off", f"it has only {len(file)} bytes", "fetch it again")
    return file.refused("neither a safetensors file nor a .ckpt",
                        f"it begins with the bytes {start[:12].hex(' ')}", "copy or download it again")


def check_sidecar(file: Mapped) -> None:
    """FILE.sha256, as sha256sum writes it, has to agree where it is there."""
    beside = file.seen.path.with_name(file.seen.path.name + ".sha256")
    try:
        if not beside.is_file():
            return
        with beside.open("rb") as opened:
            words = opened.read(4096).decode("utf-8", "replace").split()
    except OSError as error:
        raise refused(beside, "the hash beside the file cannot be read", str(error)[:200]) from error
    check_hash(file, 0, words[0] if words else "", beside.name)


def check_data(file: Mapped, metadata: dict[str, str]) -> None:
    """The hashes that the metadata give of the data."""
    begin = 8 + int.from_bytes(file.memory[:8], "little")
    for key in DATA_HASHES:
        if key in metadata:
            check_hash(file, begin, metadata[key].removeprefix("0x"), f"{key} in its metadata")


def check_hash(file: Mapped, begin: int, wanted: str, where: str) -> None:
    with memoryview(file.memory) as whole:
        found = hashlib.sha256(whole[begin:]).hexdigest()
    if wanted.lower() != found:
        raise file.refused("the file is not the one whose hash is known",
                           f"{shown(where)} says {shown(wanted)}, the data have {found}",
                           "fetch it again; if it was changed on purpose, remove the hash or pass verify=False")


def unusual(entries: list[header.Entry]) -> list[str]:
    notes = [] if entries else ["there are no tensors in it"]
    odd = [one.name for one in entries if one.begin % one.dtype.itemsize]
    if odd:
        notes.append(f"{len(odd)} tensors do not lie on their dtype's boundary and were copied")
    return notes
