"""Weight files opened without running anything: zip and legacy pickles of torch, and safetensors."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo_seg.errors import CheckpointError

_WRAPPERS = ("model", "state_dict", "model_state_dict")


def open_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a weight file on the CPU, by memory map where the container allows it.

    Pickles are opened with `weights_only=True`; what that refuses stays refused.

    Args:
        path: a `.pth` of either torch container, bare or wrapped (`model`, `state_dict`), or a `.safetensors`.

    Returns:
        The tensors by name, and the text metadata of a safetensors file.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds more than tensors.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the path") from None
    if start[8:9] == b"{":
        return _open_safetensors(path)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return _unwrap(_open_pickle(path, is_zip=start[:2] == b"PK"), path), {}
    raise CheckpointError(
        f"{path} begins with {start!r}; expected a torch checkpoint (zip or pickle) or a safetensors file"
    )


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); fetch or copy it again") from None


def _open_pickle(path: Path, *, is_zip: bool) -> Any:
    try:
        # A legacy file has no table of contents, so only a zip can be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        refused = re.findall(r"(?:GLOBAL|global|class) ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path} was not opened: it asks for {', '.join(dict.fromkeys(refused))}, which could run code; "
                "expected tensors and plain values only. Ask its author for a safetensors file"
            ) from None
        raise CheckpointError(f"{path} is not a readable checkpoint ({_first_line(error)}); fetch it again") from None
    except (RuntimeError, OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({_first_line(error)}); fetch or copy it again"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside what training code saved around it (epoch, optimizer, meta, ...)."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        found = f"{', '.join(others[:3])} among {len(content)} entries" if others else "nothing"
        raise CheckpointError(
            f"{path} holds {found}; expected tensors by name, bare or under one of {', '.join(map(repr, _WRAPPERS))}"
        )
    return dict(content)
