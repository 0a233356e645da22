"""The names that another project gives to a network's parameters, and ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KeyMap:
    """Names of a project -> ours.

    Args:
        rules: a pattern and its replacement each; the first one whose pattern matches at the start of a name is used.
            None as the replacement drops the tensor.
        transform: splits, merges or permutes tensors, under our names, after the renaming.
    """

    rules: tuple[tuple[str, str | None], ...]
    transform: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def rename(self, name: str) -> str | None:
        """Our name of a tensor, or None for one to drop.

        Raises:
            KeyError: no rule covers the name.
        """
        for pattern, replacement in self.rules:
            if match := re.match(pattern, name):
                return None if replacement is None else match.expand(replacement) + name[match.end() :]
        raise KeyError(name)
