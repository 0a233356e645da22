"""Weight files opened without running anything: zip and legacy pickles of torch, and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from zoo_seg.checkpoints.claims import Claim, Damaged, Refused, Unsafe, plain, read_claims
from zoo_seg.errors import CheckpointError
from zoo_seg.hub.files import MAX_HEADER

T = TypeVar("T")

_WRAPPERS = ("model", "state_dict", "model_state_dict")
_DTYPES = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
_COUNTERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
"""Of buffers; no weight may have them, see `fill`."""
MAX_NAME = 200


def open_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a weight file on the CPU, by memory map where the container allows it.

    Pickles are read twice: by `read_claims`, which makes nothing, and then by torch with `weights_only=True`.
    What either refuses stays refused.

    Args:
        path: a `.pth` of either torch container, bare or wrapped (`model`, `state_dict`), or a `.safetensors`.

    Returns:
        The tensors by name, none empty, no two on the same bytes; and the text metadata of a safetensors file.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, claims what it has not, or holds more than
            tensors.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the path") from None
    metadata: dict[str, str] = {}
    if start[8:9] == b"{":
        tensors, metadata = _open_safetensors(path)
    elif start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        tensors = _open_pickle(path, is_zip=start[:2] == b"PK")
    else:
        raise CheckpointError(
            f"{path} begins with {start!r}; expected a torch checkpoint (zip or pickle) or a safetensors file"
        )
    if mistake := _mistake_in(tensors):
        raise CheckpointError(f"{path} was not opened: {mistake}")
    return tensors, metadata


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse values that make every prediction NaN. The sum shows them at the speed of memory (25 GB/s, one core).

    Raises:
        CheckpointError: names the first tensor with NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
        if tensor.sum(dtype=wide).isfinite():
            continue
        broken = int((~tensor.isfinite()).sum())  # a sum of large values may overflow, too
        if broken:
            raise CheckpointError(
                f"{path}: {broken} of the {tensor.numel()} values of {name!r} are NaN or infinite, and so would be "
                "every prediction; the training that wrote it diverged, or the file was changed. Use another one"
            )


# --- containers ---------------------------------------------------------------------------------


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise CheckpointError(f"{path}: the header claims {length} bytes; expected at most {MAX_HEADER}")
            twice = _names_twice(file.read(length))
        with safe_open(path, framework="pt", device="cpu") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = dict(opened.metadata() or {})
    except CheckpointError:
        raise
    except Exception as error:  # of many kinds, differing by version
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({plain(error) or type(error).__name__}); fetch or copy it again"
        ) from None
    if twice:
        raise CheckpointError(f"{path} was not opened: its header has {twice[:60]!r} twice")
    return tensors, metadata


def _names_twice(header: bytes) -> str | None:
    """The first key that stands twice in an object; safetensors takes the last one."""
    found: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            found.append(next(name for name in names if names.count(name) > 1))

    json.loads(header, object_pairs_hook=collect)
    return found[0] if found else None


def _open_pickle(path: Path, *, is_zip: bool) -> dict[str, Tensor]:
    try:
        claims = _unwrap(read_claims(path), Claim, path)
        # A legacy file has no table of contents, so only a zip can be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except CheckpointError:
        raise
    except Unsafe as error:
        raise CheckpointError(
            f"{path} was not opened: it asks for {error}, which could run code; "
            "expected tensors and plain values only. Ask its author for a safetensors file"
        ) from None
    except Damaged as error:
        raise CheckpointError(f"{path} is damaged or cut short ({plain(error)}); fetch or copy it again") from None
    except Refused as error:
        raise CheckpointError(f"{path} was not opened: {plain(error)}") from None
    except Exception as error:  # torch raises almost anything on damaged data
        raise CheckpointError(
            f"{path} is damaged or cut short ({plain(error) or type(error).__name__}); fetch or copy it again"
        ) from None
    tensors = _unwrap(content, Tensor, path)
    if {name: claim.shape for name, claim in claims.items()} != {
        name: tensor.shape for name, tensor in tensors.items()
    }:
        raise CheckpointError(f"{path} was not opened: it can be read in two ways; expected one")
    return tensors


def _unwrap(content: Any, kind: type[T], path: Path) -> dict[str, T]:
    """The state dict inside what training code saved around it (epoch, optimizer, meta, ...)."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, kind)}
    if len(tensors) < len(content) or not content:
        others = [name for name in content if name not in tensors]
        shown = ", ".join(f"{plain(name)} ({type(content[name]).__name__})" for name in others[:3])
        found = f"{shown} among {len(content)} entries" if others else "nothing"
        raise CheckpointError(
            f"{path} holds {found}; expected tensors by name, bare or under one of {', '.join(map(repr, _WRAPPERS))}"
        )
    return tensors


# --- what was read ------------------------------------------------------------------------------


def _mistake_in(tensors: Mapping[str, Tensor]) -> str | None:
    """What no network's tensors are, in words; None where all is well."""
    if not tensors:
        return "it holds nothing; expected tensors by name"
    spans = []
    for name, tensor in tensors.items():
        if len(name) > MAX_NAME or not name.isprintable():
            return f"a tensor has the name {name[:60]!r}; expected at most {MAX_NAME} letters that can be printed"
        if tensor.dtype not in _DTYPES | _COUNTERS or tensor.layout != torch.strided or tensor.is_quantized:
            kind = str(tensor.dtype).removeprefix("torch.")
            return f"{name!r} is {kind}; expected dense values of float32, float64, float16 or bfloat16"
        if not tensor.numel():
            return f"{name!r} of the shape {tuple(tensor.shape)} is empty; expected values"
        extent = 1 + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride(), strict=True))
        spans.append((tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size(), name))
    spans.sort()
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:
            return f"{first!r} and {second!r} share bytes; expected each tensor to have its own (save clones of them)"
    return None
