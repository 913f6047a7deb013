"""Checkpoints whose pickles would run something, as a table; as a program, reads them all under an audit hook.

`python hostile.py FOLDER` prints JSON: how many were read, what was made of them, and the events seen, of which there
must be none but the opening and mapping of each file itself.
"""

import codecs
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import torch

from minisd.errors import MinisdError
from weights_convert.read import read_file

WEIGHTS = {"a": torch.arange(6.).view(2, 3), "b": torch.ones(3, dtype=torch.float16)}
# module, attribute, arguments: {canary} becomes the path of a file that must never come to be.
TARGETS = [
    *((module, name, ("touch {canary}",)) for module in ("os", "posix", "nt") for name in ("system", "popen")),
    *(("subprocess", name, ("touch {canary}",)) for name in ("Popen", "run", "check_output", "getoutput", "call")),
    *((module, name, ("open('{canary}', 'w')",)) for module in ("builtins", "__builtin__")
      for name in ("eval", "exec", "compile", "__import__", "print", "input")),
    ("builtins", "open", ("{canary}", "w")), ("io", "open", ("{canary}", "w")), ("_io", "FileIO", ("{canary}", "w")),
    ("builtins", "getattr", ("os", "system")), ("builtins", "globals", ()), ("builtins", "breakpoint", ()),
    ("pkgutil", "resolve_name", ("os:system",)), ("importlib", "import_module", ("antigravity",)),
    ("runpy", "run_path", ("{canary}",)), ("code", "interact", ()), ("timeit", "timeit", ("open('{canary}','w')",)),
    ("cProfile", "run", ("open('{canary}','w')",)), ("pdb", "run", ("1",)), ("bdb", "Bdb.run", ("1",)),
    ("urllib.request", "urlopen", ("http://127.0.0.1:9",)), ("socket", "create_connection", (("127.0.0.1", 9),)),
    ("http.client", "HTTPSConnection", ("127.0.0.1",)), ("webbrowser", "open", ("file:///",)),
    ("shutil", "rmtree", ("{canary}",)), ("pathlib", "Path.touch", ("{canary}",)), ("ctypes", "CDLL", ("libc.so.6",)),
    ("torch", "load", ("{canary}",)), ("torch.hub", "load", ("x", "y")), ("torch.storage", "_load_from_bytes", (b"x",)),
    ("torch._utils", "_rebuild_device_tensor_from_numpy", ()), ("torch.jit", "load", ("{canary}",)),
    ("numpy", "load", ("{canary}",)), ("numpy.testing._private.utils", "runstring", ("1", {})),
    ("pickle", "loads", (b"cos\nsystem\n(S'touch {canary}'\ntR.",)), ("marshal", "loads", (b"c",)),
    ("types", "FunctionType", ()), ("types", "CodeType", ()), ("operator", "attrgetter", ("system",)),
    ("operator", "methodcaller", ("system", "id")), ("functools", "partial", ("os.system", "id")),
    ("functools", "reduce", ()), ("pty", "spawn", ("/bin/sh",)), ("pip", "main", (["install", "x"],)),
    ("logging.config", "listen", ()), ("venv", "create", ("{canary}",)), ("sys", "exit", (1,)), ("os", "_exit", (1,)),
    ("os", "kill", (1, 0)), ("signal", "raise_signal", (15,)), ("collections", "eval", ("1",)),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start", ()), ("ensurepip", "_run_pip", ([],)),
    ("lib2to3.pgen2.grammar", "Grammar.loads", (b"x",)), ("copyreg", "_reconstructor", ()),
    ("torch.utils.cpp_extension", "load_inline", ()), ("torch._inductor.codecache", "compile_file", ("{canary}",)),
    ("collections.OrderedDict", "__class__", ()), ("torch._utils._rebuild_tensor_v2", "__globals__", ()),
    ("", "", ()), ("os\x1b[2J", "system", ("id",)),
]


def plain(value) -> bytes:
    """The opcodes that put a value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def text(value: str) -> bytes:
    return b"X" + pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def put(number: int) -> bytes:
    """Keep in the memo, and take off the stack."""
    return b"r" + pack("<I", number) + b"0"


def got(number: int) -> bytes:
    return b"j" + pack("<I", number)


# Each form: the opcodes that leave one value on the stack, where something would have been run on the way.
FORMS = {
    "REDUCE": lambda m, n, a: named(m, n) + plain(a) + b"R",
    "STACK_GLOBAL": lambda m, n, a: text(m) + text(n) + b"\x93" + plain(a) + b"R",
    "STACK_GLOBAL from the memo": lambda m, n, a: (text(m) + put(1000) + text(n) + put(1001) + got(1000) + got(1001)
                                                   + b"\x93" + plain(a) + b"R"),
    "INST": lambda m, n, a: b"(" + b"".join(plain(x) for x in a) + b"i" + f"{m}\n{n}\n".encode(),
    "OBJ": lambda m, n, a: b"(" + named(m, n) + b"".join(plain(x) for x in a) + b"o",
    "NEWOBJ": lambda m, n, a: named(m, n) + plain(a) + b"\x81",
    "NEWOBJ_EX": lambda m, n, a: named(m, n) + plain(a) + b"}\x92",
    "REDUCE on what was made": lambda m, n, a: named(m, n) + plain(a) + b"R" + plain(a) + b"R" + b")R",
    "getattr chain": lambda m, n, a: (named("builtins", "getattr") + b"(" + named("builtins", "__import__") + text(m)
                                      + b"\x85R" + text(n) + b"tR" + plain(a) + b"R"),
    "BUILD": lambda m, n, a: (named(m, n) + b")\x81}" + text("__setstate__") + named(m, n) + b"sb"
                              + plain(a) + b"b"),
    "SETITEM and APPEND on what was made": lambda m, n, a: (named(m, n) + b")R" + text("k") + plain(a) + b"s"
                                                            + plain(a) + b"a(" + plain(a) + b"e"),
    "as a key": lambda m, n, a: b"}" + named(m, n) + plain(a) + b"R" + b"Ns",
    "hidden behind POP": lambda m, n, a: named(m, n) + plain(a) + b"R0N",
    "EXT": lambda m, n, a: b"\x82\x01\x83\x01\x00\x84\x01\x00\x00\x00" + b"00" + plain(a) + b"R",
}


def good_pickle() -> tuple[bytes, dict[str, bytes]]:
    """The pickle of the weights without its frame, and the archive's other entries."""
    saved = io.BytesIO()
    torch.save(WEIGHTS, saved)
    with zipfile.ZipFile(saved) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    script = entries.pop("archive/data.pkl")
    return script[2:-1], entries


def archive_of(script: bytes, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.writestr("archive/data.pkl", script)
        for name, data in entries.items():
            archive.writestr(name, data)
    return target.getvalue()


def cases(canary: str) -> Iterator[tuple[str, bytes]]:
    """Every target in every form, beside whole weights."""
    weights, entries = good_pickle()
    for form, opcodes in FORMS.items():
        for module, name, arguments in TARGETS:
            filled = tuple(a.replace("{canary}", canary) if isinstance(a, str) else a for a in arguments)
            script = (b"\x80\x02}(" + text("callbacks") + opcodes(module, name, filled)
                      + text("state_dict") + weights + b"u.")
            yield f"{form}: {module}.{name}", archive_of(script, entries)


def main(folder: Path) -> int:
    canary, path = folder / "canary", folder / "model.ckpt"
    files = list(cases(str(canary)))
    path.write_bytes(files[0][1])
    read_file(path)
    for name in ("unicode_escape", "raw_unicode_escape", "ascii", "latin-1", "cp437"):
        codecs.lookup(name)
    events: list[str] = []
    said: dict[str, str] = {}
    reading = False

    def watch(event, args):
        allowed = event in ("mmap.__new__", "_thread.start_new_thread") or (event == "open" and args[0] == str(path))
        if reading and not allowed:
            events.append(f"{event} {args}"[:200])

    sys.addaudithook(watch)
    for case, data in files:
        path.unlink()
        path.write_bytes(data)
        reading = True
        try:
            found = read_file(path).tensors
            whole = found.keys() == WEIGHTS.keys() and all(torch.equal(found[n], WEIGHTS[n]) for n in WEIGHTS)
            said[case] = "whole" if whole else "wrong"
        except MinisdError as error:
            said[case] = str(error)
        reading = False
    print(json.dumps({"said": said, "events": events, "canary": canary.exists()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
