"""Names of another project's tensors under ours, and back again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

Transform: TypeAlias = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class KeyMap:
    """How one project calls the tensors of a backbone or of a family's heads.

    Rules are pairs of beginnings, theirs and ours; `{}` stands for one part of a name and is carried over:
    `("modules.{}.1.conv.", "branches.{}.conv.")`. The first rule that fits is used. Ours is None for a tensor
    that is not needed. Being plain beginnings, rules read in both directions: a file is told what it lacks in its own
    names.
    """

    rules: tuple[tuple[str, str | None], ...]
    transform: Transform | None = None
    """Applied to the renamed tensors where shapes differ as well: splits, merges, permutes."""

    def rename(self, name: str) -> str | None:
        """Our name of a tensor; None for one that is not needed.

        Raises:
            KeyError: no rule fits.
        """
        for pattern, ours in self._forward:
            if match := pattern.match(name):
                return None if ours is None else ours.format(*match.groups()) + name[match.end() :]
        raise KeyError(name)

    def has(self, name: str) -> bool:
        """Whether a rule fits."""
        return any(pattern.match(name) for pattern, _ in self._forward)

    def original(self, name: str) -> str | None:
        """Their name of one of our tensors; None where it has none of its own."""
        for pattern, theirs in self._backward:
            if match := pattern.match(name):
                return theirs.format(*match.groups()) + name[match.end() :]
        return None

    def after(self, theirs: str, ours: str) -> KeyMap:
        """The same rules behind a prefix on either side."""
        rules = ((theirs + old, None if new is None else ours + new) for old, new in self.rules)
        return KeyMap(tuple(rules), self.transform)

    @cached_property
    def _forward(self) -> list[tuple[re.Pattern[str], str | None]]:
        return [(_pattern(theirs), ours) for theirs, ours in self.rules]

    @cached_property
    def _backward(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(ours), theirs) for theirs, ours in self.rules if ours is not None]


def join(tensors: dict[str, Tensor], parts: Sequence[str], whole: str) -> dict[str, Tensor]:
    """Tensors whose names differ in one of `parts`, one below the other under the name with `whole`.

    What is not complete, or not of one shape, stays: that is said when it is put into the network.
    """
    result = dict(tensors)
    for name, tensor in tensors.items():
        names = [name.replace(parts[0], part) for part in parts] if parts[0] in name else []
        if names and tensor.ndim and all(each in tensors and tensors[each].shape == tensor.shape for each in names):
            result[name.replace(parts[0], whole)] = torch.cat([result.pop(each) for each in names])
    return result


def _pattern(beginning: str) -> re.Pattern[str]:
    return re.compile(r"([^.]+)".join(map(re.escape, beginning.split("{}"))))
