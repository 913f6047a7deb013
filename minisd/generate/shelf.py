"""LoRA files, found by name and known by their contents. No torch: a file that is not there is told at once."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from minisd.errors import MinisdError
from minisd.tags import Ask, Lora, check_alone, check_name, read_ask

SUFFIXES = (".safetensors", ".pt", ".ckpt", "")   # what a name may leave out; the last is a folder of PEFT's
PEFT = ("adapter_model.safetensors", "adapter_config.json")
CHUNK = 1 << 20


class Shelf:
    """Files by their sha256, as drawings name them; it fills as LoRAs are asked for.

    `expected` are the sha256 that names must have: those of a picture that is drawn again.
    """

    def __init__(self, expected: Mapping[str, str] | None = None) -> None:
        self.files: dict[str, Path] = {}
        self.expected = dict(expected or {})
        self._known: dict[Path, tuple[str, str]] = {}

    def lend(self, folder: Path, options: Sequence[str], tags: Sequence[Ask]) -> tuple[Lora, ...]:
        """The LoRAs of the command line, which may name files, and then those of a prompt, which may not."""
        found = [self._lora(ask, self._given(ask, folder)) for ask in map(read_ask, options)]
        found += [self._lora(ask, named(ask.name, folder)) for ask in tags]
        check_alone(found)
        return tuple(found)

    def _given(self, ask: Ask, folder: Path) -> Path:
        return path if is_lora(path := Path(ask.name)) else named(ask.name, folder)

    def _lora(self, ask: Ask, path: Path) -> Lora:
        """What a drawing says of a file."""
        if path not in self._known:
            self._known[path] = hashes(path)
        sha256, short = self._known[path]
        name = bare(path.name if ask.name == str(path) or is_lora(Path(ask.name)) else ask.name)
        if self.expected.get(name, sha256) != sha256:
            raise MinisdError(f"the LoRA {name!r} is not the one that the picture was drawn with", str(path),
                              f"its sha256 begins with {sha256[:10]}, the other's with {self.expected[name][:10]}",
                              "give the folder of the other by --lora-dir, or this one by --lora")
        self.files[sha256] = path
        return Lora(name, sha256, short, ask.strength)


def unlent(folder: Path, options: Sequence[str], tags: Sequence[Ask]) -> tuple[Lora, ...]:
    """Stands for a shelf until there is one."""
    return ()


def is_lora(path: Path) -> bool:
    """Whether it is a file, or a folder that PEFT wrote."""
    return path.is_file() or (path / PEFT[1]).is_file()


def bare(name: str) -> str:
    """A name without its suffix; other points belong to it."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if suffix and name.endswith(suffix)), name)


def named(name: str, folder: Path) -> Path:
    """The file of a name in the folder, which may be in one of its folders: `people/ada`."""
    check_name(name)
    tried = [folder / f"{bare(name)}{suffix}" for suffix in SUFFIXES]
    found = next((path for path in tried if is_lora(path)), None)
    if found is None:
        near = get_close_matches(name, list(there(folder)), n=3)
        raise MinisdError(f"no LoRA is called {name!r}", f"looked for {', '.join(map(str, tried[:-1]))}",
                          f"near: {', '.join(near)}" if near else "",
                          "give its folder by --lora-dir, or the file by --lora")
    return found


def there(folder: Path) -> Iterator[str]:
    """Names in a folder, as they would be asked for."""
    files = folder.iterdir() if folder.is_dir() else ()
    return (bare(path.name) for path in files if path.suffix in SUFFIXES and is_lora(path))


def hashes(path: Path) -> tuple[str, str]:
    """sha256 of all that a LoRA's files hold, and the beginning of that of its tensors alone: A1111's and Civitai's."""
    try:
        if path.is_file():
            return digests(path)
        both = [digests(path / name) for name in PEFT]
    except OSError as error:
        raise MinisdError("the LoRA cannot be read", str(path), error.strerror or str(error),
                          "give another by --lora") from error
    return hashlib.sha256("".join(sha256 for sha256, _ in both).encode()).hexdigest(), both[0][1]


def digests(path: Path) -> tuple[str, str]:
    """The same of one file; A1111 leaves the header of a .safetensors file out, and nothing of others."""
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as file:
        header = 0
        if path.suffix == ".safetensors":
            begin = file.read(8)
            size = int.from_bytes(begin, "little")
            header = 8 + size if size < path.stat().st_size else 0
            whole.update(begin)
            whole.update(file.read(header - 8) if header else b"")
            tensors.update(b"" if header else begin)
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            tensors.update(chunk)
    return whole.hexdigest(), tensors.hexdigest()[:12]
