"""What a pickle says, without doing it: a machine for its opcodes that imports nothing and calls nothing it names.

A class or function is only its name, as a Global. A call is looked up by that name in a table of ours; what is not in
the table becomes a Stub, which swallows whatever is done to it. Keys that are not text become Stubs as well: hashing a
stranger's numbers and nested tuples can be made to take forever.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

Calls = Mapping[str, Callable[[tuple[Any, ...]], Any]]
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
FRESH: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
PLAIN = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
         "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
         "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NOTHING = {"PROTO", "FRAME", "STOP"}


class Malformed(ValueError):
    """A pickle that makes no sense, or asks for too much."""


class Global:
    """The name of a class or function: "module.attribute"."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Stub:
    """In place of what a class or function that we do not know would have made."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Parameters:
    """A ParameterDict: what it holds is in the state that it is built of."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: dict[Any, Any] = {}

    def build(self, state: Any) -> None:
        parameters = state.get("_parameters") if type(state) is dict else None
        if type(parameters) is not dict:
            raise Malformed("a dictionary of parameters that holds none")
        self.held = parameters


class Machine:
    """Follows one pickle: `calls` are all that can happen, `persistent` reads what it says lies outside of it,
    `most` is how many instructions it may have."""

    def __init__(self, calls: Calls, persistent: Callable[[Any], Any], most: int) -> None:
        self.calls, self.persistent, self.most = calls, persistent, most
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []          # the stacks under each open mark
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        try:
            for count, (opcode, arg, _) in enumerate(pickletools.genops(data)):
                if count > self.most:
                    raise Malformed(f"more than {self.most:,} instructions")
                self.step(opcode.name, arg)
            return self.stack.pop()
        except (IndexError, KeyError) as error:
            raise Malformed("it takes what it has not put there") from error
        except (ValueError, OverflowError, struct.error) as error:
            raise Malformed(str(error)[:200]) from error

    def step(self, name: str, arg: Any) -> None:
        """One instruction; the commonest first."""
        if name in PLAIN:
            self.stack.append(arg)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(arg)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(arg)])
        elif name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name in SHORT_TUPLES:
            count = SHORT_TUPLES[name]
            self.stack[-count:] = [tuple(self.stack[len(self.stack) - count:])]
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in FRESH:
            self.stack.append(FRESH[name]())
        elif name not in NOTHING:
            (self.collect if name in COLLECTING else self.make)(name, arg)

    def collect(self, name: str, arg: Any) -> None:
        """Instructions that gather what lies above a mark, or fill a container."""
        match name:
            case "TUPLE" | "FROZENSET":
                items = self.marked()
                self.stack.append(tuple(items))
            case "LIST":
                items = self.marked()
                self.stack.append(items)
            case "DICT":
                items = self.marked()
                self.stack.append(filled({}, items))
            case "APPEND":
                extended(self.stack[-2], [self.stack.pop()])
            case "APPENDS" | "ADDITEMS":
                items = self.marked()
                extended(self.stack[-1], items)
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                filled(self.stack[-1], [key, value])
            case "SETITEMS":
                items = self.marked()
                filled(self.stack[-1], items)
            case "POP_MARK":
                self.marked()
            case "POP":
                self.stack.pop() if self.stack else self.marked()
            case _:
                self.stack.append(self.stack[-1])  # DUP

    def make(self, name: str, arg: Any) -> None:
        """Instructions that would import or call something."""
        match name:
            case "GLOBAL":
                self.stack.append(Global(".".join(arg.split(" ", 1))))
            case "STACK_GLOBAL":
                attribute, module = self.stack.pop(), self.stack.pop()
                if type(module) is not str or type(attribute) is not str:
                    raise Malformed("a global whose name is no text")
                self.stack.append(Global(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                args, function = self.stack.pop(), self.stack.pop()
                self.stack.append(self.called(function, args))
            case "NEWOBJ_EX":
                _, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
                self.stack.append(self.called(function, args))
            case "OBJ":
                function, *args = self.marked()
                self.stack.append(self.called(function, tuple(args)))
            case "INST":
                args = self.marked()
                self.stack.append(self.called(Global(".".join(arg.split(" ", 1))), tuple(args)))
            case "BUILD":
                state = self.stack.pop()           # of an object; a state dict's holds its layout versions
                if type(self.stack[-1]) is Parameters:
                    self.stack[-1].build(state)
            case "BINPERSID":
                self.stack.append(self.persistent(self.stack.pop()))
            case "EXT1" | "EXT2" | "EXT4":
                self.stack.append(Stub(f"extension {arg}"))
            case _:
                raise Malformed(f"the instruction {name} has no place in a checkpoint")

    def called(self, function: Any, args: Any) -> Any:
        if type(args) is not tuple:
            raise Malformed("a call whose arguments are no tuple")
        if type(function) is not Global:
            return Stub("something called")
        known = self.calls.get(function.name)
        return known(args) if known else Stub(function.name)

    def marked(self) -> list[Any]:
        """What lies above the last mark, which is taken away."""
        items, self.stack = self.stack, self.below.pop()
        return items


COLLECTING = {"TUPLE", "FROZENSET", "LIST", "DICT", "APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS", "POP",
              "POP_MARK", "DUP"}


def extended(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is not Stub:
        raise Malformed("something is appended to what is no list")


def filled(target: Any, items: list[Any]) -> Any:
    """The dictionary with these keys and values, which take turns."""
    if len(items) % 2:
        raise Malformed("a key has no value")
    if type(target) is dict:
        target |= {key if type(key) is str else Stub("key"): value
                   for key, value in zip(items[::2], items[1::2], strict=True)}
    elif type(target) is not Stub:
        raise Malformed("a value is set in what is no dictionary")
    return target
