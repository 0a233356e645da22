"""Backbones by name: those written here, and any of timm's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import nn

from zoo_seg import backbones
from zoo_seg.backbones.backbone import Backbone
from zoo_seg.keymap import KeyMap

_REGISTERED: dict[str, Backbone] = {}


def register_backbone(
    name: str,
    create: Callable[..., nn.Module],
    key_maps: Mapping[str, KeyMap | Callable[[Mapping[str, Any]], KeyMap]] | None = None,
    implied_options: Mapping[str, Mapping[str, Any]] | None = None,
    prefixes: Mapping[str, str] | None = None,
) -> Backbone:
    """Make a backbone known; a later one of the same name takes its place."""
    _REGISTERED[name] = Backbone(name, create, key_maps or {}, implied_options or {}, prefixes or {})
    return _REGISTERED[name]


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(backbones.__path__):
        if module.name not in ("backbone", "registry", "staged", "timm_backbone"):
            importlib.import_module(f"{backbones.__name__}.{module.name}")


def list_backbones() -> list[str]:
    """The names of the backbones that are written here or were registered; timm's are known besides."""
    _import_all()
    return sorted(_REGISTERED)


def find_backbone(name: str) -> Backbone:
    """A backbone by its name: one of ours, else timm's.

    Raises:
        UnknownNameError: neither has it.
    """
    _import_all()
    if name in _REGISTERED:
        return _REGISTERED[name]
    from zoo_seg.backbones.timm_backbone import find_timm_backbone  # 2 seconds, for those who need it

    return find_timm_backbone(name, list_backbones())
