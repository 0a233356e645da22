"""What a network computes, as a digest that another process finds as well."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import sys
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zoo_seg.checkpoints.digest import tensor_sha256
from zoo_seg.inference.snapshot import LIBRARIES, class_name, library_of
from zoo_seg.network import SegmentationNetwork
from zoo_seg.version import __version__

_PLAIN = (types.NoneType, bool, int, float, complex, str, bytes, range, slice, enum.Enum, torch.dtype, torch.device)
_NOT_DESCRIBED = {*vars(nn.Module()), "training"}
"""torch's own tables, which are gone through, and the mode: `predict` computes in eval."""
_WITHOUT_CODE = ("builtins", "typing", "abc")
_UNUSED = ("smart_apply",)
"""What transformers adds to torch's Module while it makes a network of its own; nothing here calls it."""


class UnknownCodeError(Exception):
    """A part of the network computes with code that is not the libraries' own, of which only this process knows."""


def network_sha256(network: SegmentationNetwork, *versions: str) -> str:
    """The digest, 64 hex digits, of each module's class and attributes and each tensor's name and content.

    Args:
        versions: of what else it depends on. Those of the libraries whose classes a network has are in it.

    Raises:
        UnknownCodeError: a class, method or attribute is not of these libraries.
    """
    found: list[object] = [*versions, __version__, torch.__version__]
    found.append(getattr(sys.modules.get("timm"), "__version__", None))
    for name, module in network.named_modules():
        attributes = vars(module)
        own = {key: attributes[key] for key in attributes.keys() - _NOT_DESCRIBED}
        hooks = [*attributes["_forward_pre_hooks"].values(), *attributes["_forward_hooks"].values()]
        found.append([name, _class(type(module)), _described(own, set()), _described(hooks, set())])
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        found.append([name, tensor_sha256(tensor)])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _class(kind: type) -> str:
    """Its name, if it and its methods are the libraries'."""
    for base in kind.__mro__:
        if library_of(base) not in _WITHOUT_CODE:
            for each in (base, *(value for name, value in vars(base).items() if name not in _UNUSED)):
                if isinstance(each, (type, types.FunctionType)):
                    _code(each)
    return f"{kind.__module__}.{kind.__qualname__}"


def _code(value: Any) -> str:
    if library_of(value) not in (*LIBRARIES, *_WITHOUT_CODE):
        raise UnknownCodeError(f"{value.__module__}.{value.__qualname__} is code of your own")
    return f"{value.__module__}.{value.__qualname__}"


def _described(value: Any, within: set[int]) -> object:
    """A value in JSON's types; `within` are the objects that it is a part of."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in within:
        return "itself"
    within = within | {id(value)}
    if isinstance(value, (tuple, list)):
        return [_described(each, within) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_described(each, within)) for each in value)
    if isinstance(value, Mapping):
        return [[str(key), _described(value[key], within)] for key in sorted(value, key=str)]
    if isinstance(value, functools.partial):
        return _described((value.func, value.args, value.keywords), within)
    if isinstance(value, types.MethodType):
        return _described((value.__func__, value.__self__), within)
    if isinstance(value, types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [_code(value), _described(cells, within)]
    if library_of(type(value)) in LIBRARIES and hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        return [_class(type(value)), _described(vars(value), within)]
    raise UnknownCodeError(f"nothing is known of an attribute of the kind {class_name(value)}")
