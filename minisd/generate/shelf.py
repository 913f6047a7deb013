"""Files of LoRAs and embeddings, found by name and known by their contents. No torch: faults are told at once."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from minisd.drawing.tags import EMBEDDING, LORA, Ask, Embedding, Kind, Lora, check_alone, check_name, read_ask
from minisd.errors import MinisdError

# What a name may leave out; "" is a folder of PEFT's.
SUFFIXES = {LORA: (".safetensors", ".pt", ".ckpt", ""), EMBEDDING: (".safetensors", ".pt", ".bin")}
PEFT = ("adapter_model.safetensors", "adapter_config.json")
CHUNK = 1 << 20


class Shelf:
    """Files of one kind by their sha256, as drawings name them; it fills as they are asked for.

    `expected` are the sha256 that names must have: those of a picture that is drawn again.
    """

    def __init__(self, kind: Kind, expected: Mapping[str, str] | None = None) -> None:
        self.kind, self.files = kind, dict[str, Path]()
        self.expected = dict(expected or {})
        self._known: dict[Path, tuple[str, str]] = {}

    def lend(self, folder: Path, options: Sequence[str], tags: Sequence[Ask]) -> tuple[Lora, ...]:
        """The LoRAs of the command line, which may name files, and then those of a prompt, which may not."""
        found = [self._lora(ask, self._given(ask.name, folder)) for ask in map(read_ask, options)]
        found += [self._lora(ask, named(ask.name, folder, LORA)) for ask in tags]
        check_alone(found)
        return tuple(found)

    def embeddings(self, folder: Path, options: Sequence[str]) -> tuple[Embedding, ...]:
        """Those of the command line, which may name files."""
        found = [Embedding(*self._hashed(name, self._given(name, folder))[:2]) for name in options]
        check_alone(found, EMBEDDING)
        return tuple(found)

    def _given(self, name: str, folder: Path) -> Path:
        path = Path(name)
        if path.is_absolute() and not is_there(path):
            raise absent(name, [path], folder, self.kind)
        return path if is_there(path) else named(name, folder, self.kind)

    def _lora(self, ask: Ask, path: Path) -> Lora:
        return Lora(*self._hashed(ask.name, path), ask.strength)

    def _hashed(self, asked: str, path: Path) -> tuple[str, str, str]:
        """What a drawing says of a file: its name, its sha256 and A1111's hash of its tensors."""
        if path not in self._known:
            self._known[path] = hashes(path, self.kind)
        sha256, short = self._known[path]
        name = bare(path.name if asked == str(path) or is_there(Path(asked)) else asked, self.kind)
        if self.expected.get(name, sha256) != sha256:
            raise MinisdError(f"the {self.kind.noun} {name!r} is not the one that the picture was drawn with",
                              str(path),
                              f"its sha256 begins with {sha256[:10]}, the other's with {self.expected[name][:10]}",
                              f"give the folder of the other by --lora-dir, or this one by {self.kind.option}")
        self.files[sha256] = path
        return name, sha256, short


def unlent(folder: Path, options: Sequence[str], tags: Sequence[Ask]) -> tuple[Lora, ...]:
    """Stands for a shelf until there is one."""
    return ()


def is_there(path: Path) -> bool:
    """Whether it is a file, or a folder that PEFT wrote."""
    return path.is_file() or (path / PEFT[1]).is_file()


def bare(name: str, kind: Kind) -> str:
    """A name without its suffix; other points belong to it."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES[kind] if suffix and name.endswith(suffix)), name)


def named(name: str, folder: Path, kind: Kind) -> Path:
    """The file of a name in the folder, which may be in one of its folders: `people/ada`."""
    check_name(name, kind)
    tried = [folder / f"{bare(name, kind)}{suffix}" for suffix in SUFFIXES[kind]]
    found = next((path for path in tried if is_there(path)), None)
    if found is None:
        raise absent(name, tried, folder, kind)
    return found


def absent(name: str, tried: Sequence[Path], folder: Path, kind: Kind) -> MinisdError:
    """What is near, and what the name holds if it is a folder."""
    near = [*get_close_matches(name, list(there(folder, kind)), n=3), *map(str, within(Path(name), kind))]
    return MinisdError(f"no {kind.noun} is called {name!r}", f"looked for "
                       f"{', '.join(str(path) for path in tried if path.suffix or path.is_absolute())}",
                       f"near: {', '.join(near)}" if near else "",
                       f"give its folder by --lora-dir, or the file by {kind.option}")


def there(folder: Path, kind: Kind) -> Iterator[str]:
    """Names in a folder, as they would be asked for."""
    return (bare(path.name, kind) for path in within(folder, kind))


def within(folder: Path, kind: Kind) -> Iterator[Path]:
    """A folder's files of a kind, if it is one."""
    files = sorted(folder.iterdir()) if folder.is_dir() else ()
    return (path for path in files if path.suffix in SUFFIXES[kind] and is_there(path))


def hashes(path: Path, kind: Kind) -> tuple[str, str]:
    """sha256 of all that a file or folder holds, and the beginning of that of its tensors alone: A1111's, Civitai's."""
    try:
        if path.is_file():
            return digests(path)
        both = [digests(path / name) for name in PEFT]
    except OSError as error:
        raise MinisdError(f"the {kind.noun} cannot be read", str(path), error.strerror or str(error),
                          f"give another by {kind.option}") from error
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
