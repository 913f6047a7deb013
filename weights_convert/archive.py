"""The zip archive around a PyTorch checkpoint: where its entries lie, if they are stored and apart."""

import io
import struct
from typing import NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from weights_convert.mapped import Mapped, shown

LONGEST_DIRECTORY, MOST_ENTRIES = 2 ** 22, 50_000
LOCAL = struct.Struct("<4s5H3L2H")                 # the header in front of each entry's bytes
ENCRYPTED = 1


class Item(NamedTuple):
    """An entry's bytes, counted from the beginning of the file."""

    name: str
    begin: int
    end: int
    crc: int

    @property
    def size(self) -> int:
        return self.end - self.begin


def read_archive(file: Mapped) -> tuple[dict[str, Item], bool]:
    """The entries by their names, and whether the archive has checksums: zeros everywhere are none.

    Its directory is at the end; of a longer one, which would take minutes to parse, the beginning is not found.
    """
    end = file.memory[-LONGEST_DIRECTORY:]
    before = len(file) - len(end)
    try:
        with ZipFile(io.BytesIO(end)) as archive:
            items = [located(file, entry, before + entry.header_offset) for entry in archive.infolist()]
            check_apart(items, before + archive.start_dir)
    except (BadZipFile, ValueError, OverflowError, struct.error, OSError, NotImplementedError, EOFError) as error:
        raise file.refused("the checkpoint's zip archive is damaged or cut off", shown(error, 200),
                           "copy or download it again") from error
    if len({item.name for item in items}) < len(items):
        raise file.refused("two entries of the checkpoint's zip archive have one name")
    return {item.name: item for item in items}, any(item.crc for item in items if item.size)


def located(file: Mapped, entry: ZipInfo, at: int) -> Item:
    """An entry's bytes, if it is stored as it is and its own header, at that place, agrees with the directory."""
    name = shown(entry.filename)
    if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & ENCRYPTED:
        raise BadZipFile(f"{name} is compressed or encrypted, which PyTorch never does")
    if at < 0 or at + LOCAL.size > len(file):
        raise BadZipFile(f"{name} lies outside the file")
    magic, _, _, method, _, _, _, _, _, name_length, extra_length = LOCAL.unpack_from(file.memory, at)
    begin = at + LOCAL.size + name_length + extra_length
    written = file.memory[at + LOCAL.size:at + LOCAL.size + name_length]
    if magic != b"PK\3\4" or method != ZIP_STORED or written != entry.orig_filename.encode("utf-8"):
        raise BadZipFile(f"{name} is not where the directory says")
    if begin + entry.file_size > len(file):
        raise BadZipFile(f"{name} reaches beyond the end")
    return Item(entry.filename, begin, begin + entry.file_size, entry.CRC)


def check_apart(items: list[Item], directory: int) -> None:
    """Entries may not overlap each other or the directory; their sizes then sum to less than the file."""
    if len(items) > MOST_ENTRIES:
        raise BadZipFile(f"{len(items):,} entries")
    end = 0
    for item in sorted(items, key=lambda item: item.begin):
        if item.begin < end:
            raise BadZipFile(f"{shown(item.name)} overlaps another entry")
        end = item.end
    if end > directory:
        raise BadZipFile("an entry overlaps the directory")
