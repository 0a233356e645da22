"""State dicts of other projects under this library's names, for a known architecture.

The rules stand beside each backbone and each family; here they are put together. A tensor that no rule names, or two
for one place, are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from zoo_seg.backbones.registry import find_backbone
from zoo_seg.errors import CheckpointError
from zoo_seg.families.registry import find_family
from zoo_seg.keymap import KeyMap, Transform
from zoo_seg.manifest import Architecture

Naming = Literal["ssseg", "mmseg", "torchvision", "transformers", "zoo_seg"]

_PROJECTS: dict[Naming, tuple[str, str]] = {
    "ssseg": ("SSSegmentation", "backbone_net."),
    "mmseg": ("MMSegmentation", "backbone."),
    "torchvision": ("torchvision", "backbone."),
    "transformers": ("transformers", "backbone."),
}
"""Their titles, and what stands before the names of a backbone's tensors, unless it or the family says otherwise."""
_OURS = KeyMap(
    (
        ("network.", ""),
        ("aux_head.", "aux_heads.0."),  # until there could be several
        ("backbone.", "backbone."),
        ("head.", "head."),
        ("aux_heads.", "aux_heads."),
    )
)


@dataclass(frozen=True)
class Converted:
    """Tensors under this library's names."""

    tensors: dict[str, Tensor]
    naming: Naming
    """Whose names they had."""
    original: Callable[[str], str | None]
    """What the file calls, or would call, one of our tensors."""


def convert(tensors: Mapping[str, Tensor], architecture: Architecture) -> Converted:
    """A state dict of any project that published such a network, under this library's names.

    Raises:
        CheckpointError: it holds tensors that such a network has not, or two for one place.
    """
    tensors = _renamed(tensors, lambda name: name.removeprefix("module."))
    maps = key_maps(architecture)
    naming = max(maps, key=lambda each: sum(maps[each].has(name) for name in tensors))
    chosen = maps[naming]
    unknown = [name for name in tensors if not chosen.has(name)]
    if unknown:
        projects = " or ".join(f"{_title(each)} ({_prefix(each, architecture)}*)" for each in maps if each in _PROJECTS)
        raise CheckpointError(
            f"{len(unknown)} of its {len(tensors)} tensors belong to no {described(architecture)}, such as "
            f"{', '.join(unknown[:3])}; expected the names of {projects}, or zoo_seg (backbone.*, head.*)"
        )
    renamed = _renamed(tensors, chosen.rename)
    original = chosen.original if naming != "zoo_seg" else lambda name: name
    return Converted(chosen.transform(renamed) if chosen.transform else renamed, naming, original)


def key_maps(architecture: Architecture) -> dict[Naming, KeyMap]:
    """Everybody's names of an architecture's tensors."""
    family, backbone = find_family(architecture.family), find_backbone(architecture.backbone)
    maps: dict[Naming, KeyMap] = {"zoo_seg": _OURS}
    for project in _PROJECTS:
        heads = family.key_map(project, architecture)
        body = backbone.key_map(project, architecture.backbone_options)
        if heads is not None and body is not None:
            rules = body.after(_prefix(project, architecture), "backbone.").rules + heads.rules
            maps[project] = KeyMap(rules, _both(body.transform, heads.transform))
    return maps


def described(architecture: Architecture) -> str:
    """Such as `fcn on resnet50c, output stride 8`."""
    stride = f", output stride {architecture.output_stride}" if architecture.output_stride else ""
    return f"{architecture.family} on {architecture.backbone}{stride}"


def looks_like(names: Iterable[str], architectures: Iterable[Architecture]) -> str | None:
    """Which of some architectures a file with these names could hold, in words; None for none of them."""
    names = list(names)
    found = dict.fromkeys(
        f"{_title(naming)}'s {architecture.family} on {architecture.backbone}"
        for architecture in architectures
        for naming, each in key_maps(architecture).items()
        if all(each.has(name) for name in names)
    )
    return " or ".join(list(found)[:3]) or None


def _prefix(project: Naming, architecture: Architecture) -> str:
    """What a project writes before the names of a backbone's tensors."""
    of_family = find_family(architecture.family).backbone_prefixes.get(project, _PROJECTS[project][1])
    return find_backbone(architecture.backbone).prefixes.get(project, of_family)


def _title(naming: Naming) -> str:
    return _PROJECTS[naming][0] if naming in _PROJECTS else "zoo_seg"


def _both(body: Transform | None, heads: Transform | None) -> Transform | None:
    """A backbone's transform, which knows its own names only, and then the heads'."""
    if body is None:
        return heads

    def both(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix = "backbone."
        inside = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
        rest = {name: each for name, each in tensors.items() if not name.startswith(prefix)}
        rest.update({prefix + name: each for name, each in body(inside).items()})
        return heads(rest) if heads else rest

    return both


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> dict[str, Tensor]:
    old: dict[str, str] = {}
    for name in tensors:
        ours = rename(name)
        if ours is None:
            continue
        first = old.setdefault(ours, name)
        if first != name:
            raise CheckpointError(f"{first!r} and {name!r} are both {ours!r}; expected one of them in the file")
    return {new: tensors[name] for new, name in old.items()}
