"""What a user calls weights becomes tensors under this library's names.

A name goes to its record, the record to a verified file, the file to a state dict. The first load of
a cached pickle leaves a safetensors copy beside it, which later loads map into memory.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from zoo_seg.errors import CheckpointError, OptionError, UnknownNameError
from zoo_seg.manifest import Weights, get_weights, list_weights
from zoo_seg.weights import cache, huggingface
from zoo_seg.weights.checkpoint import check_finite, open_checkpoint
from zoo_seg.weights.convert import Layout, convert
from zoo_seg.weights.digest import tensors_sha256 as digest
from zoo_seg.weights.files import exclusive, replacing, sweep
from zoo_seg.weights.folder import WEIGHTS, Config, is_network, read_config

_log = logging.getLogger("zoo_seg")

_NAMING = "2"
"""Version of this library's own parameter names, kept in the copies so that old ones are made anew."""
_MOST_CLASSES = 1 << 16


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under this library's names, and what they say about the network."""

    path: Path
    tensors: Mapping[str, Tensor]
    layout: Layout
    """Whose names the file had."""
    weights: Weights | None = None
    """The published record, where the file was reached through one."""
    config: Config | None = None
    """What stands beside the file, where it is a folder."""

    @property
    def num_classes(self) -> int:
        """Read from the classifier's shape."""
        count = int(self._require("head.classifier.weight").shape[0])
        if count > _MOST_CLASSES:
            raise CheckpointError(f"{self.path} has {count} classes; a mask can hold {_MOST_CLASSES}")
        return count

    @property
    def network_options(self) -> dict[str, Any]:
        """What the shapes say about the network: the heads' widths and which of Semantic FPN's necks it is."""
        options: dict[str, Any] = {"channels": int(self._require("head.classifier.weight").shape[1])}
        if "aux_head.classifier.weight" in self.tensors:
            options["aux_channels"] = int(self._require("aux_head.classifier.weight").shape[1])
        if "head.neck.lateral.0.bias" in self.tensors:
            options["neck"] = "conv"
        return options

    def _require(self, name: str) -> Tensor:
        if name not in self.tensors or self.tensors[name].ndim != 4:
            raise CheckpointError(
                f"{self.path} has no {name!r} of four dimensions: it is not a network of this library's families"
            )
        return self.tensors[name]


def load_checkpoint(
    model: str, pretrained: str | os.PathLike[str] | Weights | Literal[True], *, progress: bool = True
) -> Checkpoint:
    """Find, verify, open and rename weights.

    Args:
        model: a canonical model name, for tags.
        pretrained: a tag (`"ade20k"`, `"ade20k_mmseg"`), a file, a folder that `finetune` or `save_pretrained`
            wrote, an `https://`, `file://` or `hf://org/repo[@revision][/file]` link, or a record; True is the model's
            first weights.

    Raises:
        UnknownNameError: neither a tag of this model nor a file, or the model has no published weights.
        OptionError: `pretrained` is something else.
        DownloadError, CheckpointError: see `zoo_seg.errors`.
    """
    if isinstance(pretrained, Weights):
        return _from_record(pretrained, progress)
    if pretrained is True:
        return _from_record(first_weights(model), progress)
    if not isinstance(pretrained, (str, os.PathLike)):
        raise OptionError(
            f"the weights are of type {type(pretrained).__name__}; expected a tag such as 'ade20k', a path, a link, a "
            "record, or True for the model's first. A state dict goes into load_state_dict"
        )
    name = os.fspath(pretrained)
    if name.startswith("hf://") and (repository := huggingface.repository(name)):
        folder = huggingface.fetch_network(repository, progress=progress)
        if folder is None:  # no config.json: bare values
            return _from_cache(cache.fetch_link(name, progress=progress))
        return open_folder(folder)
    if "://" in name:
        linked = cache.fetch_link(name, progress=progress)
        # A file of the user's own is read where it is and gets no copy beside it.
        return _unmapped(_open(linked.path)) if name.startswith("file://") else _from_cache(linked)
    if Path(name).is_file():
        return _unmapped(_open(Path(name)))
    if is_network(name) or (os.sep in name and Path(name).is_dir()):
        return open_folder(Path(name))
    if isinstance(pretrained, os.PathLike) or os.sep in name or Path(name).suffix in (".pth", ".pt", ".safetensors"):
        raise CheckpointError(
            f"there is no file {name!r}; expected a .pth or .safetensors file, a link such as hf://org/repo, or a tag"
        )
    return _from_record(get_weights(model, name), progress)


def first_weights(model: str) -> Weights:
    """The record that stands first in the manifest for a model.

    Raises:
        UnknownNameError: the model has no published weights.
    """
    records = list_weights(model)
    if not records:
        raise UnknownNameError(f"{model} has no published weights; name a path or a link")
    return records[0]


def open_repository(repository: huggingface.Repository, *, progress: bool = True) -> Checkpoint:
    """The network in a repository of the Hugging Face Hub, with its config.

    Raises:
        CheckpointError: it holds no network of this library.
        DownloadError: it cannot be had.
    """
    folder = huggingface.fetch_network(repository, progress=progress)
    if folder is None:
        raise CheckpointError(
            f"{repository.name} has no config.json, so it is not a network that zoo_seg wrote; a weight file in it is "
            f"loaded into a model of a known name, as 'hf://{repository.name}/FILE'"
        )
    return open_folder(folder)


def _from_record(weights: Weights, progress: bool) -> Checkpoint:
    cached = cache.fetch(weights, progress=progress)
    proven = cached.sha256 in {file.sha256 for file in weights.files}
    checkpoint = _from_cache(cached, None if proven else weights.tensors_sha256)
    if checkpoint.num_classes != weights.num_classes:
        raise CheckpointError(
            f"{checkpoint.path} has {checkpoint.num_classes} classes, the record {weights.id} {weights.num_classes}; "
            "the published file has changed. Load it by its path if you trust it"
        )
    return replace(checkpoint, weights=weights)


def _from_cache(file: cache.CachedFile, tensors_sha256: str | None = None) -> Checkpoint:
    """Open a verified file by way of its safetensors copy, which is made on the first load.

    Args:
        tensors_sha256: the digest that the tensors must have, where the hash of the file itself proves nothing.
    """
    if file.path.suffix == ".safetensors":
        return _open(file.path, tensors_sha256)
    copy = file.path.with_name(f"{file.path.name}.{file.sha256[:12]}.safetensors")
    if checkpoint := _read_copy(copy):
        return checkpoint
    with exclusive(copy.with_name(".lock")) as alone:  # of many processes one reads the pickle, the others its copy
        if checkpoint := _read_copy(copy):
            return checkpoint
        checkpoint = _open(file.path, tensors_sha256)
        try:
            _write_copy(checkpoint, copy, file.sha256)
            if alone:
                sweep(copy.parent)
        except (OSError, SafetensorError) as error:  # a read-only or full cache: the tensors are here all the same
            _log.info("no safetensors copy of %s was kept: %s", file.path.name, error)
    return _read_copy(copy) or checkpoint  # mapped, it is shared by all who use it


def open_folder(folder: Path) -> Checkpoint:
    """The network in a folder that `finetune` or `save_pretrained` wrote, with its config.

    Raises:
        CheckpointError: it is not such a folder, or its two files do not belong together.
    """
    config = read_config(folder)
    checkpoint = replace(_open(folder / WEIGHTS), config=config)
    if checkpoint.num_classes != len(config.classes):
        raise CheckpointError(
            f"{checkpoint.path} has {checkpoint.num_classes} classes, the config beside it {len(config.classes)}; "
            "expected two files of one network"
        )
    return checkpoint


def _open(path: Path, tensors_sha256: str | None = None) -> Checkpoint:
    tensors, _ = open_checkpoint(path)
    check_finite(path, tensors)
    renamed, layout = convert(tensors)
    if tensors_sha256 and (found := digest(renamed)) != tensors_sha256:
        raise CheckpointError(
            f"{path} holds other tensors than were published: expected the digest {tensors_sha256}, got {found}; "
            "delete it and fetch it from another source"
        )
    return Checkpoint(path, {name: _full(tensor) for name, tensor in renamed.items()}, layout)


def _unmapped(checkpoint: Checkpoint) -> Checkpoint:
    """In memory: a user's script may save over the file it loaded, which would pull a map from under the network."""
    return replace(checkpoint, tensors={name: tensor.clone() for name, tensor in checkpoint.tensors.items()})


def _full(tensor: Tensor) -> Tensor:
    """Other precisions are for files; networks are built in float32."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _read_copy(copy: Path) -> Checkpoint | None:
    """The copy, if it is undamaged and has today's names."""
    if cache.check(copy) is None:
        return None
    tensors, metadata = open_checkpoint(copy)
    if metadata.get("naming") != _NAMING:
        return None
    return Checkpoint(copy, tensors, cast(Layout, metadata["layout"]))


def _write_copy(checkpoint: Checkpoint, copy: Path, source_sha256: str) -> None:
    metadata = {"naming": _NAMING, "layout": checkpoint.layout, "source_sha256": source_sha256}
    with replacing(copy) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors makes its files readable by their owner only
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, temporary, metadata)
        temporary.chmod(mode)
    cache.write_record(copy)


# --- tensors into a network ---------------------------------------------------------------------


def classifier_names(tensors: Iterable[str]) -> set[str]:
    """The tensors that depend on the classes: those of the main and the auxiliary classifier."""
    return {name for name in tensors if re.match(r"(aux_)?head\.classifier\.", name)}


def fill(network: nn.Module, checkpoint: Checkpoint, *, new_classifiers: bool = False) -> None:
    """Put a checkpoint's tensors into a network (on the meta device or not), strictly.

    The first convolution is adapted where the network takes another number of channels (its weights
    are repeated and scaled, as timm does), unless a config beside the file claims them for the file.
    The tensors are used as they are, not copied.

    Args:
        new_classifiers: leave the classifiers of both heads out; the caller initialises them.

    Raises:
        CheckpointError: a table of what is missing, unexpected, or of another shape.
    """
    expected = network.state_dict()
    tensors = dict(checkpoint.tensors)
    stem = next(name for name, tensor in expected.items() if tensor.ndim == 4)
    channels = expected[stem].shape[1]
    claimed = checkpoint.config is not None and checkpoint.config.in_chans == channels
    if stem in tensors and tensors[stem].ndim == 4 and tensors[stem].shape[1] == 3 != channels and not claimed:
        tensors[stem] = adapt_input_conv(channels, tensors[stem])
    left_out = classifier_names(expected) if new_classifiers else set()
    for name in left_out:
        tensors.pop(name, None)
    rows = [(name, "-", _shape(expected[name])) for name in expected if name not in tensors and name not in left_out]
    rows += [(name, _shape(tensor), "-") for name, tensor in tensors.items() if name not in expected]
    rows += [
        (name, _shape(tensor), _shape(expected[name]))
        for name, tensor in tensors.items()
        if name in expected and _shape(tensor) != _shape(expected[name])
    ]
    if rows:
        raise CheckpointError(_table(checkpoint.path, rows))
    network.load_state_dict(tensors, strict=False, assign=True)


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else " of whole numbers"
    return ("x".join(map(str, tensor.shape)) or "scalar") + kind


def _table(path: Path, rows: list[tuple[str, str, str]], most: int = 20) -> str:
    """What does not fit, as text: one row a tensor, `-` where a side has none."""
    shown = [("tensor", "in the file", "in the network"), *rows[:most]]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    if len(rows) > most:
        lines.append(f"... and {len(rows) - most} more")
    return f"{path} does not fit the network in {len(rows)} tensors:\n  " + "\n  ".join(lines)
