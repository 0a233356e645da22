"""JSON decoded into dataclasses: their annotations are the schema.

What they do not name is refused, and a mistake is reported with its path and line in the file.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from zoo_seg.errors import ManifestError

T = TypeVar("T")


def read_json(path: Path, decode_all: Callable[[Any], T]) -> T:
    """What `decode_all` makes of the JSON in a file.

    Raises:
        ManifestError: with file, line and path of the first mistake, a `Mistake` of `decode_all` among them.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read as UTF-8 text ({error}); expected a manifest (JSON)") from None
    try:
        raw = json.loads(text, object_pairs_hook=_no_duplicates)
        return decode_all(raw)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except _Duplicate:
        key, number = _find_duplicate(text)
        raise ManifestError(f"{path}:{number}: the key {key!r} stands twice in one object") from None
    except RecursionError:
        raise ManifestError(f"{path}: nested too deeply for a manifest") from None
    except Mistake as mistake:
        line = f":{_line_of(text, mistake.path)}" if mistake.path else ""
        raise ManifestError(f"{path}{line}: {_dotted(mistake.path)}: {mistake.message}") from None


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


def show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [each for each in known if name and name in each]
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
    decoder = json.JSONDecoder()
    skip = re.compile(r"[\s:,]*").match

    def after_space(position: int) -> int:
        match = skip(text, position)
        return match.end() if match else position

    position = after_space(0)
    for step in path:
        cursor, found, index = after_space(position + 1), False, 0
        while text[cursor] not in "]}":
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
        position = cursor
    return text.count("\n", 0, position) + 1


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"\w+", step):
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step)}]"
    return text or "the top level"
