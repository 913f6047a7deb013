"""Plain data to dataclasses: strict, and every fault named by its place."""

from dataclasses import dataclass
from typing import Literal

import pytest

from minisd.config import UNetConfig
from minisd.errors import BAD_FILE, USAGE, MinisdError
from minisd.schema import read, read_file


@dataclass(frozen=True)
class Inner:
    number: int = 1
    maybe: int | None = 2
    ratio: float | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    word: Literal["a", "b"] = "a"
    flag: bool = False
    table: Inner | None = None


def why(data):
    with pytest.raises(MinisdError) as error:
        read(Outer, data, "there")
    assert error.value.code == USAGE and error.value.where == "there"
    return error.value.why


def test_what_fits_is_read():
    data = {"inner": {"ratio": 2}, "many": [{"number": 3}], "word": "b", "flag": True, "table": {"maybe": 4}}
    assert read(Outer, data, "") == Outer(Inner(ratio=2.0), (Inner(3),), "b", True, Inner(maybe=4))


@pytest.mark.parametrize("none", ["none", None])
def test_none_can_be_said_where_it_is_allowed(none):
    assert read(Inner, {"maybe": none}, "").maybe is None
    assert read(Outer, {"table": none}, "").table is None
    assert read(UNetConfig, {"mid_depth": none, "heads": none, "head_dim": 40}, "").mid_depth is None
    assert "is not a int" in why({"inner": {"number": none}})


@pytest.mark.parametrize("data, words", [
    ({"inner": {"number": "4"}}, "'4' is not a int @ .inner.number"),
    ({"inner": {"number": True}}, "True is not a int"),
    ({"inner": {"maybe": "non"}}, "'non' is not a int @ .inner.maybe"),
    ({"flag": 1}, "1 is not a bool @ .flag"),
    ({"many": [{"number": 1}, {"numbr": 1}]}, "unknown entry numbr (did you mean number?)"),
    ({"word": "c"}, "c"),
])
def test_faults_are_named_by_their_place(data, words):
    assert words in why(data)


def test_a_presets_own_rule_is_told():
    with pytest.raises(MinisdError, match="4 widths but 2 depths"):
        read(UNetConfig, {"depths": [1, 1]}, "")


def test_files(tmp_path):
    toml, broken = tmp_path / "x.toml", tmp_path / "y.json"
    toml.write_text('word = "b"\n[inner]\nmaybe = "none"\n')
    assert read_file(Outer, toml) == Outer(Inner(maybe=None), word="b")
    broken.write_text("{")
    with pytest.raises(MinisdError, match="not valid JSON") as error:
        read_file(Outer, broken)
    assert error.value.code == USAGE and "line 1" in error.value.why
    with pytest.raises(MinisdError, match=r"cannot read z\.toml") as error:
        read_file(Outer, tmp_path / "z.toml")
    assert error.value.code == BAD_FILE
