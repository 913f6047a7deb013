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


class Directory(io.RawIOBase):
    """The mapped file for `zipfile`, which would read a directory of any length at once, and parse it for minutes."""

    def __init__(self, file: Mapped) -> None:
        self.memory, self.at = file.memory, 0

    def seek(self, at: int, whence: int = 0) -> int:
        self.at = at + {0: 0, 1: self.at, 2: len(self.memory)}[whence]
        if self.at < 0:
            raise BadZipFile("a place before the beginning")
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        size = len(self.memory) - self.at if size < 0 else size
        if size > LONGEST_DIRECTORY:
            raise BadZipFile(f"a directory of {size:,} bytes")
        found = self.memory[self.at:self.at + size]
        self.at += len(found)
        return found


def read_archive(file: Mapped) -> tuple[dict[str, Item], bool]:
    """The entries by their names, and whether the archive has checksums: zeros everywhere are none."""
    try:
        with ZipFile(Directory(file)) as archive:
            entries = archive.infolist()
            items = [located(file, entry) for entry in entries]
            check_apart(items, archive.start_dir)
    except (BadZipFile, ValueError, OverflowError, struct.error, OSError, NotImplementedError, EOFError) as error:
        raise file.refused("the checkpoint's zip archive is damaged or cut off", shown(error, 200),
                           "copy or download it again") from error
    if len({item.name for item in items}) < len(items):
        raise file.refused("two entries of the checkpoint's zip archive have one name")
    return {item.name: item for item in items}, any(item.crc for item in items if item.size)


def located(file: Mapped, entry: ZipInfo) -> Item:
    """An entry's bytes, if it is stored as it is and its own header agrees with the directory."""
    name = shown(entry.filename)
    if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & ENCRYPTED:
        raise BadZipFile(f"{name} is compressed or encrypted, which PyTorch never does")
    at = entry.header_offset
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
