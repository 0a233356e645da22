"""JSON decoded into dataclasses: their annotations are the schema.

What they do not name is refused, and a mistake is reported with its path and line in the file. The file may be
anybody's: its length, its numbers and the letters of its strings are bounded, so that it can be read, kept and shown.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from zoo_seg.errors import ManifestError

T = TypeVar("T")

MAX_BYTES = 4 << 20
"""Of a file; the published manifest has 70 kB. Python needs about 30 times as much for what is in it."""
_MAX_DIGITS = 20
"""Of a whole number; a time in nanoseconds has 19."""
_MAX_SHOWN = 500
"""Letters of a message that come from the file."""


def read_json(path: Path, decode_all: Callable[[Any], T]) -> T:
    """What `decode_all` makes of the JSON in a file.

    Raises:
        ManifestError: with file, line and path of the first mistake, a `Mistake` of `decode_all` among them.
    """
    text = _read_text(path)
    try:
        raw = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_int=_whole_number, parse_constant=_refuse_constant
        )
        return decode_all(raw)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except _Duplicate:
        key, number = _find_duplicate(text)
        raise ManifestError(f"{path}:{number}: the key {key[:60]!r} stands twice in one object") from None
    except _Number as error:
        raise ManifestError(f"{path}: {error}") from None
    except RecursionError:
        raise ManifestError(f"{path}: nested too deeply for a manifest") from None
    except Mistake as mistake:
        line = f":{_line_of(text, mistake.path)}" if mistake.path else ""
        message = mistake.message if len(mistake.message) <= _MAX_SHOWN else f"{mistake.message[:_MAX_SHOWN]}..."
        raise ManifestError(f"{path}{line}: {_dotted(mistake.path)}: {message}") from None


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ManifestError(f"{path}: more than {MAX_BYTES >> 20} MiB; expected a manifest (JSON) of less")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read as UTF-8 text ({error}); expected a manifest (JSON)") from None


class _Number(Exception):
    """A number that JSON allows or Python adds, and nobody means."""


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _Number(f"a number of {len(digits)} digits, expected at most {_MAX_DIGITS}")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise _Number(f"{name} is not valid JSON; expected a number")


class Mistake(Exception):
    """A mistake at a place given by keys and indices; becomes a ManifestError with file and line."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.message, self.path = message, path


_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def decode(kind: Any, value: Any, path: tuple[str | int, ...], known: Mapping[str, Any] | None = None) -> Any:
    """Return `value` as `kind`; `known` fields of a dataclass are filled in by us and refused in the file."""
    if is_dataclass(kind):
        return _decode_record(typing.cast(type, kind), value, path, known or {})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        if len(options) == 1:
            return decode(options[0], value, path)
        if type(value) in options:
            return value
        raise Mistake(f"found {show(value)}, expected {' or '.join(_NAMES[option] for option in options)}", *path)
    if origin is Literal:
        if value in arguments:
            return value
        raise Mistake(f"found {show(value)}, expected one of {', '.join(map(repr, arguments))}", *path)
    if origin is tuple:
        if not isinstance(value, list):
            raise Mistake(f"found {show(value)}, expected a list", *path)
        if arguments[-1] is Ellipsis:
            return tuple(decode(arguments[0], item, (*path, i)) for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise Mistake(f"found {len(value)} items, expected {len(arguments)}", *path)
        return tuple(
            decode(each, item, (*path, i)) for i, (each, item) in enumerate(zip(arguments, value, strict=True))
        )
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        if kind is float and not math.isfinite(value):
            raise Mistake("found a number that is too large", *path)
        if kind is str and not _is_text(value):
            raise Mistake(f"found {show(value)}, expected text without control characters", *path)
        return value
    raise Mistake(f"found {show(value)}, expected {_NAMES[kind]}", *path)


def _decode_record(cls: type[T], value: Any, path: tuple[str | int, ...], known: Mapping[str, Any]) -> T:
    if not isinstance(value, dict):
        raise Mistake(f"found {show(value)}, expected an object", *path)
    names = [each.name for each in fields(cls) if each.name not in known]  # type: ignore[arg-type]
    for key in value:
        if key not in names:
            raise Mistake(f"unknown key; {suggest(key, names)}", *path, key)
    required = [
        each.name
        for each in fields(cls)  # type: ignore[arg-type]
        if each.default is MISSING and each.default_factory is MISSING and each.name in names
    ]
    for name in required:
        if name not in value:
            raise Mistake(f"the key {name!r} is missing", *path)
    hints = typing.get_type_hints(cls)
    decoded = {key: decode(hints[key], item, (*path, key)) for key, item in value.items()}
    try:
        return cls(**known, **decoded)
    except ValueError as error:
        raise Mistake(str(error), *path) from None


def _is_text(value: str) -> bool:
    """Whether a terminal only shows it, and a file can hold it (half of a surrogate pair it cannot)."""
    return not any(letter < " " or "\x7f" <= letter <= "\x9f" or "\ud800" <= letter <= "\udfff" for letter in value)


def show(value: Any) -> str:
    """A value in a message: as JSON, in ASCII, and not without end."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.75)
    close = close or [each for each in known if name and (name in each or name.startswith(each))]
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known are {', '.join(known)}" if known else "none is known"


class _Duplicate(Exception):
    """A key stands twice in one object, which JSON allows and nobody means."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _Duplicate
    return result


def _find_duplicate(text: str) -> tuple[str, int]:
    """The first key that stands twice in one object, and the line where it does so the second time."""
    seen: list[set[str]] = []
    for token in re.finditer(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}\[\]]', text):
        if token[0] in "{[":
            seen.append(set())
        elif token[0] in "}]":
            seen.pop()
        elif token[2]:
            key: str = json.loads(token[1])
            if key in seen[-1]:
                return key, text.count("\n", 0, token.start()) + 1
            seen[-1].add(key)
    raise AssertionError("called for a text without duplicates")


def _line_of(text: str, path: tuple[str | int, ...]) -> int:
    """The 1-based line at which the value at `path` starts (its deepest existing ancestor)."""
    return text.count("\n", 0, locate(text, path)[0]) + 1


def locate(text: str, path: tuple[str | int, ...]) -> tuple[int, int, int]:
    """Where in a valid JSON text the value at `path` stands, or its deepest existing ancestor.

    Returns:
        Its first position, the position after it, and how many steps of `path` were found.
    """
    decoder = json.JSONDecoder()
    skip = re.compile(r"[\s:,]*").match

    def after_space(position: int) -> int:
        match = skip(text, position)
        return match.end() if match else position

    position, depth = after_space(0), 0
    for step in path:
        cursor, found, index = after_space(position + 1), False, 0
        while text[position] in "{[" and text[cursor] not in "]}":
            if text[position] == "{":
                key, cursor = decoder.raw_decode(text, cursor)
                cursor, found = after_space(cursor), key == step
            else:
                found, index = index == step, index + 1
            if found:
                break
            cursor = after_space(decoder.raw_decode(text, cursor)[1])
        if not found:
            break
        position, depth = cursor, depth + 1
    return position, decoder.raw_decode(text, position)[1], depth


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"\w{1,100}", step):
            text += f".{step}" if text else step
        else:
            text += f"[{show(step)}]"
    return text or "the top level"
