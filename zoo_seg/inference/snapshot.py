"""What a network computes with at one moment, so that every change is noticed, however it was made.

Object ids and tensors' version counters do not suffice: `p.data.mul_()`, a fused optimizer and a numpy view write past
them. So tensors are compared by their bytes, and everything else that modules hold by identity.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
import pathlib
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module

from zoo_seg.inference.memory import drop_file_pages

LOCK = threading.RLock()
"""Held by the one thread that prepares a network, or uses one whose mode it has to change."""
if hasattr(os, "register_at_fork"):  # the thread that held it is not there in a child
    os.register_at_fork(after_in_child=LOCK._at_fork_reinit)  # type: ignore[attr-defined]

_GLOBAL_HOOKS = _torch_module._global_forward_hooks, _torch_module._global_forward_pre_hooks
LIBRARIES = ("torch", "timm", "zoo_seg")
"""Their functions read nothing but their arguments: no global and no captured variable of the user's."""
_UNCHANGING = (
    *(types.NoneType, types.EllipsisType, types.ModuleType, types.BuiltinFunctionType, type, enum.Enum),
    *(bool, int, float, complex, str, bytes, range, slice, pathlib.PurePath, weakref.ref),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
_FOLLOWED = nn.Module, Tensor, list, dict, set, tuple, types.FunctionType, functools.partial
"""What is looked into where a user's function reads it; a logger, say, leads nowhere."""
_TENSORS = Tensor, nn.Parameter


class Snapshot:
    """A network's tensors, attributes, hooks and methods.

    Attributes:
        reason: why a copy may compute something else (hooks, patched methods, ...), or None. Such a network is to be
            used as it is, so that its tensors need no watching.

    Args:
        contents: also remember what is in the tensors.
    """

    def __init__(self, network: nn.Module, *, contents: bool = True) -> None:
        self.reason: str | None = None
        self._seen: set[int] = set()
        self._held: list[tuple[Callable[[Any], list[object]], object, list[object]]] = []
        self._tensors: list[Tensor] = []
        if any(_GLOBAL_HOOKS):
            self._stop("there is a hook for all modules")
        for hooks in _GLOBAL_HOOKS:
            self._hold(_items, hooks)
        self._visit_module(network, "")
        self._places = [tensor.detach() for tensor in self._tensors]
        self._memory: _Memory | None = None
        if contents and self.reason is None:
            self._memory = _Memory(self._tensors)
            self._sums = self._memory.sums()

    def is_current(self, network: nn.Module) -> bool:
        """Whether the network still computes with the very same."""
        names, held = self._root
        try:
            return (
                _same(_of_module((network, names)), held)
                and all(_same(look(holder), held) for look, holder, held in self._held)
                and all(map(Tensor.is_set_to, self._tensors, self._places))
                and (self._memory is None or all(map(torch.equal, self._memory.sums(), self._sums)))
            )
        except (KeyError, RuntimeError, ValueError):  # a part is gone, or has lost its memory
            return False

    def _stop(self, reason: str) -> None:
        self.reason = self.reason or reason

    def _hold(self, look: Callable[[Any], list[object]], holder: object) -> list[object]:
        held = look(holder)
        self._held.append((look, holder, held))
        return held

    def _visit_module(self, module: nn.Module, name: str) -> None:
        self._seen.add(id(module))
        if isinstance(module, torch.jit.ScriptModule):
            self._stop(f"{name} is compiled by torch.jit")
            return
        attributes = vars(module)
        names = [each for each in attributes if each not in _NO_ATTRIBUTES]
        if name:
            self._hold(_of_module, (module, names))
        else:  # a network keeps its snapshot; without a circle both are freed at once
            self._root = names, _of_module((module, names))
        self._visit_class(type(module), name)
        shown = name or type(module).__name__
        if reason := _is_special(module):
            self._stop(f"{shown} {reason}")
        for key, tensor in (*attributes["_parameters"].items(), *attributes["_buffers"].items()):
            if tensor is not None and id(tensor) not in self._seen:
                self._visit_tensor(tensor, f"{shown}.{key}")
        for key, child in attributes["_modules"].items():
            if child is not None and id(child) not in self._seen:
                self._visit_module(child, f"{name}.{key}".lstrip("."))
        for key in names:
            self._visit(attributes[key], f"{shown}.{key}")
        for hooks in (attributes["_forward_hooks"], attributes["_forward_pre_hooks"]):
            self._visit_all(hooks.values(), shown)

    def _visit_class(self, kind: type, name: str) -> None:
        """Its methods, which can be replaced as well."""
        for base in kind.__mro__[:-1]:
            if id(base) not in self._seen:
                self._seen.add(id(base))
                self._hold(_items, vars(base))
                self._visit_all([each for each in vars(base).values() if isinstance(each, types.FunctionType)], name)

    def _visit_tensor(self, tensor: Tensor, name: str) -> None:
        self._seen.add(id(tensor))
        self._tensors.append(tensor)
        if type(tensor) not in _TENSORS or tensor.layout != torch.strided:
            self._stop(f"{name} is a {type(tensor).__name__} of layout {tensor.layout}")

    def _visit_all(self, values: Iterable[object], name: str) -> None:
        for value in values:
            self._visit(value, name)

    def _visit(self, value: Any, name: str) -> None:
        if isinstance(value, _UNCHANGING) or id(value) in self._seen or _is_frozen(value):
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self._stop(f"{name} is no part of it as a module is")
            self._visit_module(value, name)
        elif isinstance(value, Tensor):
            self._stop(f"{name} is a tensor beside its parameters and buffers")
            self._visit_tensor(value, name)
        elif isinstance(value, (tuple, frozenset)):
            self._visit_all(value, name)
        elif isinstance(value, Mapping):
            self._visit_all(self._hold(_items, value), name)
        elif isinstance(value, (list, set)):
            self._visit_all(self._hold(list, value), name)
        elif isinstance(value, functools.partial):
            self._visit_all((value.func, value.args, value.keywords), name)
        elif isinstance(value, types.MethodType):
            self._visit_all((value.__func__, value.__self__), name)
        elif isinstance(value, types.FunctionType):
            if library_of(value) not in LIBRARIES:
                self._visit_all([each for each in self._hold(_reads, value) if isinstance(each, _FOLLOWED)], name)
        elif hasattr(value, "__dict__"):
            self._visit_class(type(value), name)
            self._visit_all(self._hold(_items, vars(value)), name)
        else:
            self._stop(f"{name} is a {type(value).__name__}, which may change unseen")


_HOOKS = "_forward_hooks", "_forward_pre_hooks"
_TABLES = "_parameters", "_buffers", "_modules", *_HOOKS
_NO_ATTRIBUTES = {name for name in vars(nn.Module()) if name.startswith("_")} | {"training", "_predictors"}
"""torch's own tables, the mode (`predict` computes in eval) and what is made from the network."""


def class_name(module: object) -> str:
    """Of its exact class, with the module that defines it: a class of timm can be told without importing timm."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _of_module(module_and_names: tuple[nn.Module, list[str]]) -> list[object]:
    """A module's class, attributes, and what is in torch's tables."""
    module, names = module_and_names
    attributes = vars(module)
    held: list[object] = [type(module), len(attributes), *[attributes[name] for name in names]]
    for name in _TABLES:
        if table := attributes[name]:
            held += table
            held += table.values()
    return held


def _items(mapping: Mapping[object, object]) -> list[object]:
    return [*mapping, *mapping.values()]


def _reads(function: types.FunctionType) -> list[object]:
    """What a function reads besides its arguments: its code, defaults, captured and global variables."""
    names = function.__code__.co_names
    return [
        function.__code__,
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
        *(cell.cell_contents for cell in function.__closure__ or ()),
        *(function.__globals__[name] for name in names if name in function.__globals__),
    ]


def _same(found: list[object], held: list[object]) -> bool:
    return len(found) == len(held) and all(map(is_, found, held))


def library_of(function: object) -> str:
    """The package that defines a function or class."""
    return str(getattr(function, "__module__", "")).split(".")[0]


def _is_frozen(value: object) -> bool:
    """A record of ours, such as the weights' own."""
    kind = type(value)
    return (
        dataclasses.is_dataclass(kind) and library_of(kind) == "zoo_seg" and vars(kind)["__dataclass_params__"].frozen
    )


def is_called_otherwise(module: nn.Module) -> bool:
    """Whether calling it does more than the class of its name says."""
    return any(_GLOBAL_HOOKS) or _is_special(module) is not None


def _is_special(module: nn.Module) -> str | None:
    """What a copy of the module may lose, or compute with the user's own objects."""
    attributes = vars(module)
    for hook in (hook for name in _HOOKS for hook in attributes[name].values()):
        if library_of(getattr(hook, "func", hook)) != "timm":  # which reads some backbones' feature maps so
            return "has a hook"
    if "parametrizations" in attributes["_modules"]:
        return "is parametrised"
    for name, value in attributes.items():
        if callable(value) and callable(getattr(type(module), name, None)):
            return f"has a {name} of its own"
    for name in _STEPS if hasattr(type(module), "forward_logits") else ():
        if library_of(getattr(type(module), name)) != "zoo_seg":
            return f"is a {type(module).__name__}, which has a {name} of its own"
    return None


_STEPS = "forward", "forward_features", "forward_head", "forward_logits"
"""Of a whole network: what `predict` goes through."""


# --- tensors ------------------------------------------------------------------------------------


_ROW = 8 << 10
"""Bytes of a table's row."""
_SMALL = 64 << 10
"""Bytes of a tensor that shares its table with others; on an accelerator, where calls cost more, 256 times as many."""


class _Memory:
    """The memory of tensors, as tables of integers."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tables: list[tuple[Tensor, Tensor | None]] = []
        self._rest: dict[torch.device, list[Tensor]] = {}
        for tensor in tensors:
            memory = _bytes(tensor)
            start = end = 0
            if len(memory) > (_SMALL if tensor.device.type == "cpu" else _SMALL << 8):
                start = -int(memory.storage_offset()) % 8
                end = start + (len(memory) - start) // _ROW * _ROW
                table = memory[start:end].view(torch.int64).view(-1, _ROW // 8)
                self._tables.append((table, tensor if drop_file_pages(tensor) else None))
            pieces = self._rest.setdefault(tensor.device, [])
            pieces += [piece for piece in (memory[:start], memory[end:]) if len(piece)]
        for device, pieces in self._rest.items():
            pieces.append(torch.zeros(-sum(map(len, pieces)) % _ROW, dtype=torch.uint8, device=device))

    @torch.no_grad()
    def sums(self) -> list[Tensor]:
        """The sums of each row and of each column of every table, a tensor a device.

        A changed word changes both of its sums; of two that change places at least one sum changes.
        """
        sums: dict[torch.device, list[Tensor]] = {}
        for device, pieces in self._rest.items():
            table = torch.cat(pieces).view(torch.int64).view(-1, _ROW // 8)
            sums[device] = [table.sum(1), table.sum(0)]
        for table, mapped in self._tables:
            sums[table.device] += table.sum(1), table.sum(0)
            if mapped is not None:
                drop_file_pages(mapped)
        return [torch.cat(each) for each in sums.values()]


def _bytes(tensor: Tensor) -> Tensor:
    """The memory from a tensor's first element to its last, (n,) uint8."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((span if tensor.numel() else 0,), (1,)).view(torch.uint8)
