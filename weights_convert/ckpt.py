"""PyTorch's zip checkpoints (.ckpt, .pt, .bin) without torch's unpickler: whole by their checksums, and never run.

Entries are stored, not deflated, and lie apart from each other; `pickled` tells what the pickle says; every tensor is
checked to lie within its storage. What is not weights (callbacks, optimizer states, counters) is left alone and noted.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from typing import Any

from torch import Tensor

from weights_convert.archive import Item, read_archive
from weights_convert.limits import named
from weights_convert.mapped import CHUNK, Mapped, Span, shown
from weights_convert.pickled import Machine, Malformed, Parameters
from weights_convert.pieces import CALLS, Piece, storage

LONGEST_PICKLE = 2 ** 24
THREADS = 4
NESTS = ("state_dict", "string_to_param")           # where the tensors may lie: of a model, of A1111's embeddings
MOST_OPCODES = 600_000                              # some 35 for a tensor


def read(file: Mapped) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a checkpoint under their names, and notes on what else is in it."""
    items, has_digests = read_archive(file)
    root = root_of(file, items)
    script = items[f"{root}/data.pkl"]
    if script.size > LONGEST_PICKLE:
        raise file.refused("the checkpoint's description is too long",
                           f"data.pkl has {script.size:,} bytes, at most {LONGEST_PICKLE:,} are read")
    if has_digests and damaged(file, [script]):
        raise file.refused("the checkpoint is damaged", "the checksum of its description data.pkl is wrong",
                           "copy or download it again")
    order = items.get(f"{root}/byteorder")
    if order is not None and file.memory[order.begin:order.end] != b"little":
        raise file.refused("the checkpoint was written on a big-endian machine, which is not read")
    machine = Machine(CALLS, partial(storage, items, root), min(50_000 + 100 * len(items), MOST_OPCODES))
    try:
        pieces, notes = weights(machine.run(file.memory[script.begin:script.end]))
    except Malformed as fault:
        raise file.refused("the checkpoint cannot be read", shown(fault, 300),
                           "copy or download it again") from fault
    if sum(prod(piece.shape) * piece.dtype.itemsize for piece in pieces.values()) > 2 * len(file):
        raise file.refused("the tensors are larger than the file", "many are views of the same few bytes")
    if has_digests:
        check_digests(file, pieces)
    else:
        notes.append("it was written without checksums: that it is whole cannot be proven")
    return build(file, pieces), notes


def root_of(file: Mapped, items: dict[str, Item]) -> str:
    """The folder within the archive that has everything."""
    roots = [name.removesuffix("/data.pkl") for name in items if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        listed = ", ".join(shown(name) for name in list(items)[:5])
        raise file.refused("a zip archive, but not a PyTorch checkpoint", f"{len(roots)} data.pkl in it: {listed}",
                           "unpack it, if it is a packed folder")
    return roots[0]


def check_digests(file: Mapped, pieces: dict[str, Piece]) -> None:
    """Every tensor has to have the checksum that the archive gives of its storage."""
    items = list({piece.item for piece in pieces.values()})
    with ThreadPoolExecutor(THREADS) as pool:
        wrong = set().union(*pool.map(partial(damaged, file), [items[n::THREADS] for n in range(THREADS)]))
    if wrong:
        lost = [shown(name) for name, piece in pieces.items() if piece.item.name in wrong]
        raise file.refused("the checkpoint is damaged", f"the checksums of {len(lost)} tensors are wrong: "
                           f"{', '.join(lost[:5])}", "copy or download it again")


def damaged(file: Mapped, items: list[Item]) -> set[str]:
    """Names of the items whose bytes have another checksum."""
    wrong = set()
    with memoryview(file.memory) as memory:
        for item in items:
            crc = 0
            for at in range(item.begin, item.end, CHUNK):
                crc = zlib.crc32(memory[at:min(at + CHUNK, item.end)], crc)
            if crc != item.crc:
                wrong.add(item.name)
    return wrong


def weights(content: Any) -> tuple[dict[str, Piece], list[str]]:
    """The tensors of `state_dict` (of an embedding, `string_to_param`), or of the top, and notes on all else."""
    if type(content) is not dict:
        raise Malformed("it holds no dictionary of weights; a whole module may have been saved, not its state_dict")
    state, notes = content, []
    if inner := next((key for key in NESTS if key in content), None):
        state = content[inner].held if type(content[inner]) is Parameters else content[inner]
        if rest := [shown(key) for key in content if type(key) is str and key != inner]:
            notes.append(f"ignored beside {inner}: {', '.join(rest[:20])}")
        if type(state) is not dict:
            raise Malformed(f"its {inner} is no dictionary")
    if any(type(key) is not str and type(value) is Piece for key, value in state.items()):
        raise Malformed("tensors whose names are no text")
    pieces = {key: value for key, value in state.items() if type(value) is Piece}
    other = [shown(key) for key, value in state.items() if type(key) is str and type(value) is not Piece]
    if not pieces:
        raise Malformed(f"no tensors in it, only {', '.join(other[:10]) or 'nothing'}")
    if other:
        notes.append(f"ignored, as they are no tensors: {', '.join(other[:20])}")
    if odd := next((key for key in pieces if not named(key)), None):
        raise Malformed(f"the name {shown(odd)!r} is too long or not printable")
    return pieces, notes


def build(file: Mapped, pieces: dict[str, Piece]) -> dict[str, Tensor]:
    """Views of the mapped file; tensors of one storage still share it."""
    spans = {(item, dtype): Span(item.begin, item.end, len(shape) == 4) for item, dtype, _, shape, _ in pieces.values()}
    held = {(item, dtype): window.tensor(dtype, (item.size // dtype.itemsize,), item.begin)
            for (item, dtype), window in file.windows(spans)}
    return {name: held[item, dtype].as_strided(shape, stride, offset if prod(shape) else 0)
            for name, (item, dtype, offset, shape, stride) in pieces.items()}
