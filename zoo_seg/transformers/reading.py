"""Values of transformers' files, each checked before it is believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo_seg.decode import Mistake, decode, show
from zoo_seg.manifest import Architecture

_MOST = 1 << 16
"""Channels, or classes: no network has more, and a number is believed before there is a file."""
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Reading:
    """What a `config.json` says of a network."""

    architecture: Architecture
    processor: str
    """transformers' class that prepares its images, without "Fast"."""
    defaults: Mapping[str, Any]
    """What that class takes where `preprocessor_config.json` says nothing."""
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """What that file says in the words that all classes share.

    Raises:
        Mistake: it asks for what is not done here.
    """
    splits: bool = False
    """Whether that class cuts images into windows, squares of the size that it resizes to."""
    protocol: str = "transformers"


def count_of(raw: Mapping[str, Any], name: str, default: int, *path: str) -> int:
    """A number of channels, classes or layers."""
    count: int = read(int, raw, name, default, *path)
    if not 0 < count <= _MOST:
        raise Mistake(f"found {count}, expected 1 to {_MOST}", *path, name)
    return count


def expect(raw: Mapping[str, Any], shape: Mapping[str, Any], *path: str) -> None:
    """Refuse what is not `shape`, the values of a network that is built here, which are transformers' defaults too."""
    for name, expected in shape.items():
        if raw.get(name, expected) != expected:
            raise Mistake(f"found {show(raw[name])}, expected {show(expected)}", *path, name)


def read(kind: Any, raw: Mapping[str, Any], name: str, default: Any, *path: str) -> Any:
    """`raw[name]` as a value of a type; `path` is where `raw` itself stands in its file."""
    return decode(kind, raw[name], (*path, name)) if name in raw else default
