"""The rules of the house, read from the source with `ast`: each rule yields faults as "path:line: sentence".

A rule that has to give way does so in a table here, with the reason beside it.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

# --- the tables ---

PACKAGES = ("minisd", "weights_convert")
LINES_OF_FILE, LINES_OF_FUNCTION, NESTING, ARGUMENTS = 400, 60, 3, 7
FILE_NAMES = ("utils", "util", "helpers", "helper", "common", "base", "misc")
PEERS = ("diffusers", "transformers", "peft", "accelerate", "k_diffusion", "open_clip", "clip", "ldm")
# Programs that record goldens ask the peers, too; minisd.parity compares with them when asked to.
PEERS_LIVE_IN = ("tests/reference/", "tests/goldens/make_", "benchmarks/", "minisd/parity.py",
                 "tests/gpu/test_beside_", "tests/benchmarks/test_gpu.py")
PICKLES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml")
CALLS = {
    "hasattr": "say what a thing is by its config, or by None",
    "exec": "runs text as code", "eval": "runs text as code", "__import__": "import at the top",
    "torch.load": "unpickles; read safetensors, or .ckpt through weights_convert.read",
}
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b(?!.*(?:#|issue )\d)")

# Functions that take more than seven arguments, and why.
MANY_ARGUMENTS = {
    "minisd.samplers.loop.sample": "the only loop: five say what is walked, three have defaults",
    "minisd.pipeline.StableDiffusion.txt2img": "the public face: what a picture may be told, nearly all optional",
    "minisd.pipeline.StableDiffusion.img2img": "the same",
    "minisd.pipeline.StableDiffusion.inpaint": "the same",
    "minisd.pipeline.StableDiffusion.edit": "the same",
}
# Functions that pass **kwargs on to a foreign library.
KEYWORDS_PASSED_ON: tuple[str, ...] = ()
# Libraries of our extras may be absent: they are imported where they are used, and under this module only.
EXTRAS = {"resvg_py": "minisd.recipes", "fontTools": "minisd.recipes",
          "diffusers": "minisd.parity", "transformers": "minisd.parity",
          "tensorboard": "minisd.train.board",
          "brisque": "minisd.evaluate", "cv2": "minisd.evaluate", "skimage": "minisd.evaluate"}
# Core dependencies whose module is not called like the package.
IMPORTED_AS = {"Pillow": "PIL"}


@dataclass(frozen=True)
class Floor:
    """Modules (each with what lies under it; the longest name wins) and the floors or modules they may import."""

    name: str
    modules: tuple[str, ...]
    below: tuple[str, ...] = ()
    itself: bool = True                           # whether its modules may import each other


MODELS = ("minisd.unet", "minisd.vae", "minisd.vae_tiling", "minisd.clip", "minisd.controlnet", "minisd.lora",
          "minisd.attach", "minisd.surgery", "minisd.fast")
PROGRAMS = ("minisd.generate.__main__", "minisd.distill", "minisd.train.__main__", "minisd.evaluate.__main__",
            "minisd.recipes.emoji_data", "weights_convert.__main__")
COMMANDS = ("weights_convert.lora.program",)      # programs within a program, by its first word
FLOORS = (
    Floor("face", ("minisd",), ("words",)),
    Floor("words", ("minisd.errors", "minisd.files", "minisd.config", "minisd.schema", "minisd.sites", "minisd.prompt",
                    "minisd.shares", "minisd.devices", "minisd.heap", "minisd.samplers.schedule")),
    Floor("parts", ("minisd.layers", "minisd.bpe", "minisd.tokenizer", "minisd.images", "minisd.command",
                     "minisd.labels", "minisd.png"),
          ("words",)),
    Floor("models", MODELS, ("words", "parts")),
    Floor("methods", ("minisd.samplers",), ("words",)),
    # The converter writes tokenizer files from our merges, and reads native configs strictly, by the schema.
    Floor("converter", ("weights_convert",), ("words", "minisd.bpe")),
    Floor("use", ("minisd.text", "minisd.drawing", "minisd.store", "minisd.pipeline", "minisd.models",
                  "minisd.adapters", "minisd.words", "minisd.parity"),
          ("face", "words", "parts", "models", "methods", "converter")),
    Floor("training", ("minisd.train", "minisd.evaluate", "minisd.recipes"),
          ("face", "words", "parts", "models", "methods", "converter", "use")),
    Floor("generate", ("minisd.generate",), ("face", "words", "parts", "models", "methods", "converter", "use")),
    Floor("commands", COMMANDS, ("words", "parts", "converter")),
    Floor("programs", PROGRAMS,
          ("face", "words", "parts", "models", "methods", "converter", "use", "training", "generate", "commands"),
          itself=False),
)
# Narrower than the floor: who, and what it must not import.
APART = (("minisd.train.loop", ("minisd.train.tasks", *MODELS)),)


# --- the source ---


@dataclass(frozen=True)
class Source:
    """A Python file of the repository; `path` is relative to its root."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        """Dotted name; a package is called by its folder."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_package(self) -> bool:
        return self.path.endswith("__init__.py")

    def fault(self, node: ast.AST | int, sentence: str) -> str:
        line = node if isinstance(node, int) else getattr(node, "lineno", 1)
        return f"{self.path}:{line}: {sentence}"


def sources(root: Path, *folders: str) -> list[Source]:
    """Every Python file under these folders of the repository."""
    files = [file for folder in folders for file in sorted((root / folder).rglob("*.py"))]
    return [Source(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")) for file in files]


# --- sizes ---


def sizes(source: Source) -> Iterator[str]:
    """Files over 400 lines or with a name that says nothing, functions over 60 lines, blocks nested deeper than 3."""
    if (lines := len(source.text.splitlines())) > LINES_OF_FILE:
        yield source.fault(lines, f"{lines} lines: {LINES_OF_FILE} is the wall")
    if Path(source.path).stem in FILE_NAMES:
        yield source.fault(1, "a file is one idea with a noun for a name")
    for name, node in functions(source.tree.body, source.module):
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > LINES_OF_FUNCTION:
            yield source.fault(node, f"{name} has {lines} lines: at most {LINES_OF_FUNCTION}")
    yield from (source.fault(node, f"nested deeper than {NESTING}") for node in too_deep(source.tree.body))


def signatures(source: Source) -> Iterator[str]:
    """Functions that take more than 7 arguments."""
    for name, node in functions(source.tree.body, source.module):
        if (count := len(arguments(node))) > ARGUMENTS and name not in MANY_ARGUMENTS:
            yield source.fault(node, f"{name} takes {count} arguments: at most {ARGUMENTS}; a dataclass is missing")


def functions(body: Iterable[ast.AST], prefix: str) -> Iterator[tuple[str, FunctionNode]]:
    """Every function with its dotted name, methods and functions within functions included."""
    for node in body:
        name = prefix
        if isinstance(node, ast.ClassDef | FunctionNode):
            name = f"{prefix}.{node.name}"
        if isinstance(node, FunctionNode):
            yield name, node
        yield from functions(ast.iter_child_nodes(node), name)


def arguments(node: FunctionNode) -> list[str]:
    """What a caller can give; not `self` and `cls`."""
    a = node.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if arg is not None]
    return [name for name in names if name not in ("self", "cls")]


def too_deep(body: Iterable[ast.AST], depth: int = 0, inside: bool = False) -> Iterator[ast.AST]:
    """Statements that open a block deeper than allowed in a function, the outermost of each nest only.

    A function within a function is a block of the outer one. `elif` and `else` open no deeper block than their `if`.
    """
    for node in body:
        opens = isinstance(node, ast.If | ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Try
                           | ast.TryStar | ast.Match | ast.ClassDef | FunctionNode)
        level = depth + 1 if opens and inside else depth
        if level > NESTING:
            yield node
            continue
        within = inside or isinstance(node, FunctionNode)
        elifs = [node.orelse[0]] if is_elif(node) else []
        yield from too_deep((child for child in ast.iter_child_nodes(node) if child not in elifs), level, within)
        yield from too_deep(elifs, depth, inside)


def is_elif(node: ast.AST) -> bool:
    """`elif` and `else: if` make the same tree; only the column tells them apart."""
    if not isinstance(node, ast.If) or len(node.orelse) != 1 or not isinstance(node.orelse[0], ast.If):
        return False
    return node.orelse[0].col_offset == node.col_offset


# --- words ---


def words(source: Source, own_classes: Iterable[str] = ()) -> Iterator[str]:
    """The forbidden words: hasattr, a literal getattr, isinstance of our own classes, pickles, **kwargs, ..."""
    own = set(own_classes)
    for node in ast.walk(source.tree):
        yield from (source.fault(node, sentence) for sentence in word_faults(node, own))
    for name, function in functions(source.tree.body, source.module):
        if function.args.kwarg and name not in KEYWORDS_PASSED_ON:
            yield source.fault(function, f"{name} takes **{function.args.kwarg.arg}: name the arguments")
    for number, line in enumerate(source.text.splitlines(), start=1):
        if UNFINISHED.search(line):
            yield source.fault(number, "unfinished, with no issue named")


def word_faults(node: ast.AST, own: set[str]) -> Iterator[str]:
    """What is wrong with one node."""
    match node:
        case ast.Call(func=func) if (name := ast.unparse(func)) in CALLS:
            yield f"{name}: {CALLS[name]}"
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str() as name), *_]):
            yield f"getattr with the literal {name!r}: write the dot"
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass" as call), args=[_, classes]):
            if mine := sorted(own & named(classes)):
                yield f"{call} of our own {', '.join(mine)}: decide by config or by None"
        case ast.MatchClass(cls=cls) if mine := sorted(own & named(cls)):
            yield f"case {mine[0]}() is isinstance of our own class: decide by config or by None"
        case ast.Compare(left=ast.Constant(value=str()), comparators=[ast.Name(id="self")]):
            yield "a name looked up in self: its branches are on the config"
        case ast.Compare(left=left, comparators=others) if any(is_class_name(x) for x in (left, *others)):
            yield "a class known by its name as a string"
        case ast.ImportFrom(module="torch", names=names) if any(alias.name == "load" for alias in names):
            yield f"torch.load: {CALLS['torch.load']}"
        case ast.Import() | ast.ImportFrom():
            yield from (f"{module} runs what it reads" for module in modules(node) if under(module, *PICKLES))


def named(node: ast.AST) -> set[str]:
    """Last parts of the names in a class, a tuple of classes or a union."""
    return ({n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)})


def is_class_name(node: ast.AST) -> bool:
    """`type(x).__name__`, `x.__class__.__name__`."""
    return isinstance(node, ast.Attribute) and node.attr in ("__name__", "__qualname__")


def classes(every: Iterable[Source]) -> set[str]:
    """Names of all classes of these files."""
    return {node.name for source in every for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)}


# --- imports ---


def modules(node: ast.Import | ast.ImportFrom, known: Iterable[str] = ()) -> list[str]:
    """Modules that a statement imports; `from a import b` is a.b where that is a known module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    joined = [f"{node.module}.{alias.name}" for alias in node.names]
    return sorted({name if name in known else node.module or "." for name in joined})


def imports(source: Source, known: Iterable[str] = ()) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Every imported module, wherever the statement stands; what the face shows to type checkers alone is none."""
    shown = {id(node) for block in source.tree.body if source.module == "minisd" and is_type_checking(block)
             for node in ast.walk(block)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in shown:
            yield from ((node, module) for module in modules(node, known))


def is_type_checking(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:`"""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def under(module: str, *names: str) -> bool:
    """Whether a module is one of these or lies under it."""
    return any(module == name or module.startswith(name + ".") for name in names)


def floor_of(module: str) -> Floor | None:
    """The floor that names the longest part of the module's path; the face is `minisd` alone."""
    if module == "minisd":
        return FLOORS[0]
    named_by = [(len(name), floor) for floor in FLOORS[1:] for name in floor.modules if under(module, name)]
    return max(named_by, key=lambda pair: pair[0])[1] if named_by else None


def floors(source: Source, known: Iterable[str]) -> Iterator[str]:
    """Imports of a floor above, or that the table keeps apart."""
    floor = floor_of(source.module)
    if floor is None:
        yield source.fault(1, f"{source.module} stands on no floor: add it to FLOORS in tests/house.py")
        return
    for node, module in imports(source, known):
        if not under(module, *PACKAGES) or module == source.module:
            continue
        target = floor_of(module)
        allowed = target and (target.name in floor.below or under(module, *floor.below)
                              or (target == floor and floor.itself))
        if not allowed:
            where = target.name if target else "no floor"
            yield source.fault(node, f"imports {module} ({where}), which {floor.name} must not")
        for who, others in APART:
            if source.module == who and under(module, *others):
                yield source.fault(node, f"{who} must not know {module}")


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circular import in order, or nothing."""
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> list[str]:
        if module in path:
            return [*path[path.index(module):], module]
        if module in done:
            return []
        found = next(filter(None, (walk(target, (*path, module)) for target in sorted(graph.get(module, ())))), [])
        done.add(module)
        return found

    return next(filter(None, (walk(module, ()) for module in sorted(graph))), [])


def manners(source: Source) -> Iterator[str]:
    """Imports absolute and at the top (programs and extras may be late), and no package's own file imports modules."""
    late = {id(node) for _, function in functions(source.tree.body, "") for node in ast.walk(function)}
    for node, module in imports(source):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield source.fault(node, "a relative import")
        if source.is_package and source.module != "minisd" and under(module, *PACKAGES):
            yield source.fault(node, f"imports {module}: who imports one module of a package would pay for all")
        if id(node) in late and source.module not in (*PROGRAMS, *COMMANDS) and not is_extra(module, source):
            yield source.fault(node, f"imports {module} late: imports stand at the top")


def is_extra(module: str, source: Source) -> bool:
    """Whether a module belongs to an extra that this file may use."""
    top = module.split(".")[0]
    return top in EXTRAS and under(source.module, EXTRAS[top])


def foreign(source: Source, core: Iterable[str]) -> Iterator[str]:
    """Imports of libraries that are neither declared as core dependencies nor an extra of this very file."""
    declared = {*core, *PACKAGES, *sys.stdlib_module_names}
    for node, module in imports(source):
        if module.split(".")[0] not in declared and not is_extra(module, source):
            yield source.fault(node, f"imports {module}, which is no core dependency")


def peers(source: Source) -> Iterator[str]:
    """Imports of the implementations we are compared with, outside the places for it; also by name as a string."""
    if source.path.startswith(PEERS_LIVE_IN):
        return
    for node, module in (*imports(source), *imports_by_name(source)):
        if under(module, *PEERS):
            yield source.fault(node, f"imports {module}: peers live in {' and '.join(PEERS_LIVE_IN)} only")


def imports_by_name(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """`pytest.importorskip("x")`, `import_module("x")`."""
    for node in ast.walk(source.tree):
        match node:
            case ast.Call(func=func, args=[ast.Constant(value=str() as module), *_]):
                if ast.unparse(func).split(".")[-1] in ("importorskip", "import_module"):
                    yield node, module


def docstring(source: Source) -> Iterator[str]:
    """A module says in its first line what it is."""
    if not ast.get_docstring(source.tree):
        yield source.fault(1, "no docstring: say in a sentence what this file is")
