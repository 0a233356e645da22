"""What a user calls weights becomes tensors under this library's names.

A name goes to its record, the record to a verified file, the file to a state dict. The first load of
a cached pickle leaves a safetensors copy beside it, which later loads map into memory.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zoo_seg.backbones.registry import find_backbone
from zoo_seg.checkpoints.convert import Converted, Naming, convert, described, looks_like
from zoo_seg.checkpoints.digest import tensors_sha256
from zoo_seg.checkpoints.opening import check_finite, open_checkpoint
from zoo_seg.checkpoints.restore import count_classes, restore
from zoo_seg.config import WEIGHTS, is_network, read_config
from zoo_seg.errors import CheckpointError, OptionError, UnknownNameError
from zoo_seg.families.registry import find_family
from zoo_seg.hub import cache, huggingface
from zoo_seg.hub.files import exclusive, replacing, sweep
from zoo_seg.info import ModelInfo, info_of
from zoo_seg.manifest import Architecture, Licence, Weights, get_architecture, get_weights, list_weights, load_manifest
from zoo_seg.network import SegmentationNetwork
from zoo_seg.transformers.repository import weight_paths

_log = logging.getLogger("zoo_seg")

_NAMING = "3"
"""Version of this library's own names and forms of tensors, kept in the copies so that old ones are made anew."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under this library's names, and what is known of their network."""

    path: Path
    tensors: Mapping[str, Tensor]
    naming: Naming
    """Whose names the file had."""
    architecture: Architecture
    original: Callable[[str], str | None] = lambda name: name
    """What the file calls, or would call, one of our tensors."""
    info: ModelInfo | None = None
    """That of the published record, or what stands beside the file where it is a folder."""
    tensors_sha256: str | None = None
    """The digest of the tensors, where it is known."""

    @property
    def num_classes(self) -> int:
        """Read from the classifier's shape."""
        return count_classes(self.path, self.tensors, self.architecture)

    def build(self, *, num_classes: int | None = None, in_chans: int = 3) -> SegmentationNetwork:
        """The network of these tensors, see `restore`."""
        return restore(
            self.path,
            self.tensors,
            self.architecture,
            num_classes=num_classes,
            in_chans=in_chans,
            adapt=self.info is None or self.info.in_chans != in_chans,
            original=self.original,
        )


def load_checkpoint(
    model: str | None, pretrained: bool | str | os.PathLike[str] | Weights, *, progress: bool = True
) -> Checkpoint:
    """Find, verify, open and rename weights.

    Args:
        model: a canonical model name; None for a record, a folder or a repository, which bring their own.
        pretrained: True for the model's first weights, a tag (`"ade20k"`, `"ade20k_mmseg"`), a file, a folder that
            `finetune` or `save_pretrained` wrote, an `https://`, `file://` or `hf://org/repo[@revision][/file]` link,
            or a record.

    Raises:
        UnknownNameError: neither a tag of this model nor a file, or the model has no published weights.
        OptionError: `pretrained` is something else.
        DownloadError, CheckpointError: see `zoo_seg.errors`.
    """
    if isinstance(pretrained, Weights):
        return _from_record(pretrained, progress)
    if pretrained is True and model is not None:
        return _from_record(first_weights(model), progress)
    if not isinstance(pretrained, (str, os.PathLike)):
        raise OptionError(
            f"the weights are of type {type(pretrained).__name__}; expected a tag such as 'ade20k', a path, a link, a "
            "record, or True for the model's first. A state dict goes into load_state_dict"
        )
    architecture = None if model is None else get_architecture(model)[1]
    name = os.fspath(pretrained)
    if name.startswith("hf://") and (repository := huggingface.repository(name)):
        folder = huggingface.fetch_network(repository, progress=progress)
        if folder is not None:
            return _fitting(_with_licence(open_folder(folder), repository), architecture)
    elif is_network(name) or (os.sep in name and Path(name).is_dir()):
        return _fitting(open_folder(Path(name)), architecture)
    if model is None or architecture is None:
        raise OptionError(f"the weights {name!r} do not say what network they are; name its model")
    if "://" in name:
        linked = cache.fetch_link(name, progress=progress)
        if name.startswith("file://"):  # a file of the user's own is read where it is and gets no copy beside it
            return _unmapped(_open(linked.path, architecture))
        return _from_cache(linked, architecture)
    if Path(name).is_file():
        return _unmapped(_open(Path(name), architecture))
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
            f"loaded into a model of a known name: pretrained='hf://{repository.name}/FILE'"
        )
    return _with_licence(open_folder(folder), repository)


def _with_licence(checkpoint: Checkpoint, repository: huggingface.Repository) -> Checkpoint:
    """What is published from this repository keeps its licence: transformers' `config.json` states none."""
    info, start = checkpoint.info, f"hf://{repository.id}@"
    if info is None or info.licence != Licence(None, None, None):
        return checkpoint
    for record in list_weights():
        if any(file.url.startswith(start) for file in record.files):
            return replace(
                checkpoint, info=replace(info, licence=record.licence, started_from=f"hf://{repository.name}")
            )
    return checkpoint


def open_folder(folder: Path) -> Checkpoint:
    """The network in a folder that `finetune` or `save_pretrained` wrote, or transformers, with its config.

    Raises:
        CheckpointError: it is not such a folder, or its two files do not belong together.
    """
    info = read_config(folder)
    assert info.architecture is not None  # `read_config` sees to it
    checkpoint = _open(weight_paths(folder) or [folder / WEIGHTS], info.architecture, stated=True)
    if checkpoint.num_classes != len(info.classes):
        raise CheckpointError(
            f"{checkpoint.path} has {checkpoint.num_classes} classes, the config beside it {len(info.classes)}; "
            "expected two files of one network"
        )
    digest = info.tensors_sha256 or tensors_sha256(checkpoint.tensors)
    return replace(checkpoint, info=replace(info, architecture=checkpoint.architecture, tensors_sha256=digest))


def _from_record(weights: Weights, progress: bool) -> Checkpoint:
    cached = cache.fetch(weights, progress=progress)
    proven = cached.sha256 in {file.sha256 for file in weights.files}
    expected = None if proven else weights.tensors_sha256
    checkpoint = _from_cache(cached, weights.architecture, expected=expected, stated=True)
    if checkpoint.num_classes != weights.num_classes:
        raise CheckpointError(
            f"{checkpoint.path} has {checkpoint.num_classes} classes, the record {weights.id} {weights.num_classes}; "
            "the published file has changed. Load it by its path if you trust it"
        )
    digest = checkpoint.tensors_sha256 or tensors_sha256(checkpoint.tensors)
    return replace(checkpoint, info=replace(info_of(weights), tensors_sha256=digest))


def _from_cache(
    file: cache.CachedFile, architecture: Architecture, *, expected: str | None = None, stated: bool = False
) -> Checkpoint:
    """Open a verified file by way of its safetensors copy, which is made on the first load.

    Args:
        expected: the digest that the tensors must have, where the hash of the file itself proves nothing.
        stated: see `_open`.
    """
    if file.path.suffix == ".safetensors":
        return _open(file.path, architecture, expected, stated=stated)
    copy = file.path.with_name(f"{file.path.name}.{file.sha256[:12]}.safetensors")
    if checkpoint := _read_copy(copy, architecture, stated):
        return checkpoint
    with exclusive(copy.with_name(".lock")) as alone:  # of many processes one reads the pickle, the others its copy
        if checkpoint := _read_copy(copy, architecture, stated):
            return checkpoint
        checkpoint = _open(file.path, architecture, expected, stated=stated)
        try:
            checkpoint = replace(checkpoint, tensors_sha256=tensors_sha256(checkpoint.tensors))
            _write_copy(checkpoint, copy, file.sha256, _identity(architecture))
            if alone:
                sweep(copy.parent)
        except (OSError, SafetensorError) as error:  # a read-only or full cache: the tensors are here all the same
            _log.info("no safetensors copy of %s was kept: %s", file.path.name, error)
    return _read_copy(copy, architecture, stated) or checkpoint  # mapped, it is shared by all who use it


def _open(
    path: Path | Sequence[Path], architecture: Architecture, expected: str | None = None, *, stated: bool = False
) -> Checkpoint:
    """Open and convert a file, or several that hold a network together.

    Args:
        expected: the digest that its tensors must have.
        stated: a record or a config states the architecture, and shapes tell only the options that it leaves out; else
            shapes tell what they can, such as widths.
    """
    paths = [path] if isinstance(path, Path) else path
    tensors: dict[str, Tensor] = {}
    for each in paths:
        found, _ = open_checkpoint(each)
        check_finite(each, found)
        if twice := tensors.keys() & found.keys():
            raise CheckpointError(f"{each} holds {min(twice)!r} once more than the files before it; expected it in one")
        tensors.update(found)
    return from_tensors(paths[0], tensors, architecture, expected, stated=stated)


def from_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    architecture: Architecture,
    expected: str | None = None,
    *,
    stated: bool = False,
) -> Checkpoint:
    """The checkpoint that a file's tensors are, whoever named them; the arguments are those of `_open`.

    Raises:
        CheckpointError: they belong to another network, or are not those that were expected.
    """
    converted = _converted(path, tensors, architecture)
    if expected and (found := tensors_sha256(converted.tensors)) != expected:
        raise CheckpointError(
            f"{path} holds other tensors than were published: expected the digest {expected}, got {found}; "
            "delete it and fetch it from another source"
        )
    full = {name: _full(tensor) for name, tensor in converted.tensors.items()}
    architecture = _with_options(architecture, converted.naming, full, stated)
    return Checkpoint(path, full, converted.naming, architecture, converted.original)


def _converted(path: Path, tensors: Mapping[str, Tensor], architecture: Architecture) -> Converted:
    try:
        return convert(tensors, architecture)
    except CheckpointError as error:
        known = [model.architecture for model in load_manifest().models.values()]
        found = looks_like((name.removeprefix("module.") for name in tensors), known)
        looks = f". It looks like {found}: load it under that name" if found else ""
        raise CheckpointError(f"{path} does not fit {described(architecture)}: {error}{looks}") from None


def _with_options(
    architecture: Architecture, naming: Naming, tensors: Mapping[str, Tensor], stated: bool
) -> Architecture:
    """With what the shapes, and, of a file alone, the project that named the tensors, say of the network."""
    family, backbone = find_family(architecture.family), find_backbone(architecture.backbone)
    if not stated:
        architecture = replace(
            architecture,
            options={**family.implied_options.get(naming, {}), **architecture.options},
            backbone_options={**backbone.implied_options.get(naming, {}), **architecture.backbone_options},
        )
    read = family.read_options
    if read is None:
        return architecture
    known, found = architecture.options, read({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return replace(architecture, options={**found, **known} if stated else {**known, **found})


def _unmapped(checkpoint: Checkpoint) -> Checkpoint:
    """In memory: a user's script may save over the file it loaded, which would pull a map from under the network."""
    return replace(checkpoint, tensors={name: tensor.clone() for name, tensor in checkpoint.tensors.items()})


def _full(tensor: Tensor) -> Tensor:
    """Other precisions are for files; networks are built in float32."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _fitting(checkpoint: Checkpoint, architecture: Architecture | None) -> Checkpoint:
    """Two strides of one network have the same tensors and different results, so what is said is compared as well."""
    found = checkpoint.architecture
    if architecture is not None and _key(found) != _key(architecture):
        raise CheckpointError(
            f"{checkpoint.path.parent} holds {described(found)}, expected {described(architecture)}; "
            "zoo_seg.from_pretrained loads it as what it is"
        )
    return checkpoint


def _key(architecture: Architecture) -> tuple[object, ...]:
    return architecture.family, architecture.backbone, architecture.output_stride


# --- the copy in the cache ------------------------------------------------------------------------


def _read_copy(copy: Path, architecture: Architecture, stated: bool) -> Checkpoint | None:
    """The copy, if it is undamaged, has today's names and was made for such a network."""
    if cache.check(copy) is None:
        return None
    tensors, metadata = open_checkpoint(copy)
    if metadata.get("naming") != _NAMING or metadata.get("network") != _identity(architecture):
        return None
    naming = cast(Naming, metadata["layout"])
    architecture = _with_options(architecture, naming, tensors, stated)
    digest = metadata["tensors_sha256"]
    return Checkpoint(copy, tensors, naming, architecture, tensors_sha256=digest)


def _write_copy(checkpoint: Checkpoint, copy: Path, source_sha256: str, identity: str) -> None:
    metadata = {
        "naming": _NAMING,
        "network": identity,
        "layout": checkpoint.naming,
        "source_sha256": source_sha256,
        "tensors_sha256": checkpoint.tensors_sha256 or "",
    }
    with replacing(copy) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors makes its files readable by their owner only
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, temporary, metadata)
        temporary.chmod(mode)
    cache.write_record(copy)


def _identity(architecture: Architecture) -> str:
    """What decides how a file's names are converted."""
    options = [architecture.backbone_options] if architecture.backbone_options else []
    return json.dumps([architecture.family, architecture.backbone, *options])
