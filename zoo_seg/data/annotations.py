"""What labelling tools write: lists, and JSON of any size, read item by item, with the place of each in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from zoo_seg.errors import DataError

_HEAD = 1 << 16
"""Bytes that tell what a file is."""
_MOST_LINES = 16 << 20
"""Bytes of a text."""
_SPACE = re.compile(r"[ \t\r\n]*")
_BOM = "\xef\xbb\xbf"


class Item(NamedTuple):
    """An entry of a list at the top level of a file."""

    key: str
    """Of the list."""
    value: Any
    start: int
    """Its first byte in the file."""
    end: int


def holds(path: Path, *keys: str) -> bool:
    """Whether a file seems to be a JSON object that has a list or a text under one of these keys, by its beginning."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    found = re.findall(rb'"(\w+)"\s*:\s*[\["]', head)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(key.encode() in found for key in keys)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: it is none, with line and column.
    """
    value = parse(path, _text(path))
    if not isinstance(value, dict):
        raise DataError(f"{path}: found a JSON {type(value).__name__}, expected an object")
    return value


def parse(path: Path, text: str) -> Any:
    """The value of a JSON text in which a character is a byte.

    Raises:
        DataError: it is not valid, with line and column.
    """
    text = text.removeprefix(_BOM)
    try:
        return json.loads(text.encode("latin-1").decode("utf-8"), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: not JSON as a labelling tool writes it ({error})") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text and their numbers, but for empty ones and those that begin with #.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        if path.stat().st_size > _MOST_LINES:
            raise DataError(f"{path}: more than {_MOST_LINES >> 20} MiB; expected a list")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


def items(path: Path, keys: Collection[str]) -> Iterator[Item]:
    """Every entry of the lists under these keys of the object in a file, one at a time.

    The text is in memory, at a byte for a character; what is in it never is as a whole, as Python would need ten
    times as much.

    Raises:
        DataError: it is not valid JSON, with line and column.
    """
    text = _text(path)
    try:
        yield from _items(path, text, keys)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: not JSON as a labelling tool writes it ({error})") from None


def _items(path: Path, text: str, keys: Collection[str]) -> Iterator[Item]:
    decode = json.JSONDecoder(parse_constant=_refuse).raw_decode

    def after_space(position: int) -> int:
        match = _SPACE.match(text, position)
        return match.end() if match else position

    def expect(characters: str, position: int) -> int:
        position = after_space(position)
        if text[position : position + 1] not in [*characters]:
            raise json.JSONDecodeError(f"Expecting {' or '.join(map(repr, characters))}", text, position)
        return position

    at = expect("{", len(_BOM) if text.startswith(_BOM) else 0)
    while text[at] != "}":
        start = after_space(at + 1)
        if text[start : start + 1] == "}" and text[at] == "{":
            break
        key, at = decode(text, expect('"', start))
        start = after_space(expect(":", at) + 1)
        if key not in keys:
            at = expect(",}", decode(text, start)[1])
            continue
        at = expect("[", start)
        if text[after_space(at + 1) : after_space(at + 1) + 1] == "]":
            at = after_space(at + 1)
        while text[at] != "]":
            start = after_space(at + 1)
            value, end = decode(text, start)
            if not text[start:end].isascii():
                value = parse(path, text[start:end])
            yield Item(key, value, start, end)
            at = expect(",]", end)
        at = expect(",}", at + 1)


def _text(path: Path) -> str:
    try:
        with path.open(encoding="latin-1", newline="") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
