"""State dicts of other projects under this library's names: the one file that knows theirs.

Source of the names: SSSegmentation (all revisions since 2020-11, both of its PSPNet namings) and
MMSegmentation (0.5 to 1.2.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from zoo_seg.errors import CheckpointError

Layout = Literal["ssseg", "mmseg", "zoo_seg"]
Rules = list[tuple[str, str]]

# The stem of ResNet-c is one sequence in both projects; timm keeps its last BatchNorm apart.
_RESNET: Rules = [
    (r"stem\.7\.", r"backbone.bn1."),
    (r"stem\.(\d)\.", r"backbone.conv1.\1."),
    (r"layer(\d)\.", r"backbone.layer\1."),
]

# What each key starts with, and what to put there; the first rule that fits is used.
_SSSEG: Rules = [
    *((r"backbone_net\." + old, new) for old, new in _RESNET),
    (r"auxiliary_decoder\.0\.", r"aux_head.convs.0.conv."),
    (r"auxiliary_decoder\.1\.", r"aux_head.convs.0.norm."),
    (r"auxiliary_decoder\.4\.", r"aux_head.classifier."),
]
_SSSEG_FCN: Rules = [
    (r"decoder\.0\.", r"head.convs.0.conv."),
    (r"decoder\.1\.", r"head.convs.0.norm."),
    (r"decoder\.3\.", r"head.convs.1.conv."),
    (r"decoder\.4\.", r"head.convs.1.norm."),
    (r"decoder\.7\.", r"head.classifier."),
]
_SSSEG_PSPNET: Rules = [
    (r"ppm_net\.branches\.(\d)\.1\.", r"head.branches.\1.conv."),
    (r"ppm_net\.branches\.(\d)\.2\.", r"head.branches.\1.norm."),
    (r"ppm_net\.(?:bottleneck|fuse_layer)\.0\.", r"head.bottleneck."),  # fuse_layer until 2020-12-14
    (r"ppm_net\.(?:bottleneck|fuse_layer)\.1\.", r"head.norm."),
    (r"decoder\.1\.", r"head.classifier."),
]
_SSSEG_FPN: Rules = [
    (r"fpn_neck\.lateral_convs\.(\d)\.0\.", r"head.neck.lateral.\1.conv."),
    (r"fpn_neck\.lateral_convs\.(\d)\.1\.", r"head.neck.lateral.\1.norm."),
    (r"fpn_neck\.fpn_convs\.(\d)\.0\.", r"head.neck.output.\1.conv."),
    (r"fpn_neck\.fpn_convs\.(\d)\.1\.", r"head.neck.output.\1.norm."),
    # Every second item of a scale head is an upsampling without parameters.
    *((rf"scale_heads\.(\d)\.{2 * i}\.0\.", rf"head.scale_heads.\1.convs.{i}.conv.") for i in range(3)),
    *((rf"scale_heads\.(\d)\.{2 * i}\.1\.", rf"head.scale_heads.\1.convs.{i}.norm.") for i in range(3)),
    (r"decoder\.1\.", r"head.classifier."),
]
_MMSEG: Rules = [
    *((r"backbone\." + old, new) for old, new in _RESNET),
    (r"neck\.lateral_convs\.(\d)\.conv\.", r"head.neck.lateral.\1."),
    (r"neck\.fpn_convs\.(\d)\.conv\.", r"head.neck.output.\1."),
    *((rf"decode_head\.scale_heads\.(\d)\.{2 * i}\.conv\.", rf"head.scale_heads.\1.convs.{i}.conv.") for i in range(3)),
    *((rf"decode_head\.scale_heads\.(\d)\.{2 * i}\.bn\.", rf"head.scale_heads.\1.convs.{i}.norm.") for i in range(3)),
    (r"decode_head\.psp_modules\.(\d)\.1\.conv\.", r"head.branches.\1.conv."),
    (r"decode_head\.psp_modules\.(\d)\.1\.bn\.", r"head.branches.\1.norm."),
    (r"decode_head\.bottleneck\.conv\.", r"head.bottleneck."),
    (r"decode_head\.bottleneck\.bn\.", r"head.norm."),
    (r"decode_head\.conv_seg\.", r"head.classifier."),
    (r"auxiliary_head\.convs\.0\.conv\.", r"aux_head.convs.0.conv."),
    (r"auxiliary_head\.convs\.0\.bn\.", r"aux_head.convs.0.norm."),
    (r"auxiliary_head\.conv_seg\.", r"aux_head.classifier."),
]


def detect_layout(names: Iterable[str]) -> Layout:
    """Whose names these are.

    Raises:
        CheckpointError: none that this library knows; the message quotes a few.
    """
    names = list(names)
    starts: dict[Layout, tuple[str, ...]] = {
        "ssseg": ("backbone_net.",),
        "mmseg": ("decode_head.",),
        "zoo_seg": ("head.",),
    }
    for layout, prefixes in starts.items():
        if any(name.startswith(prefixes) for name in names):
            return layout
    raise CheckpointError(
        f"the file holds {len(names)} tensors such as {', '.join(names[:3]) or 'none at all'}; expected the names of "
        "SSSegmentation (backbone_net.*), MMSegmentation (decode_head.*) or zoo_seg (backbone.*, head.*)"
    )


def convert(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Layout]:
    """A state dict of any known layout under this library's names, and whose it was.

    Names that no rule fits are kept as they are.

    Raises:
        CheckpointError: nobody's names, or two for one tensor.
    """
    tensors = _renamed(tensors, lambda name: name.removeprefix("module."))
    layout = detect_layout(tensors)
    if layout == "zoo_seg":
        return tensors, layout
    rules = _MMSEG if layout == "mmseg" else _ssseg_rules(tensors)
    return _part_bottleneck(_renamed(tensors, lambda name: _rename(name, rules))), layout


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    old: dict[str, str] = {}
    for name in tensors:
        first = old.setdefault(rename(name), name)
        if first != name:
            raise CheckpointError(f"{first!r} and {name!r} are both {rename(name)!r}; expected one of them in the file")
    return {new: tensors[name] for new, name in old.items()}


def _part_bottleneck(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both projects keep PSPNet's bottleneck over [x, pooled parts] whole; see `PSPHead` for the parts."""
    branches = [tensors.get(f"head.branches.{i}.conv.weight") for i in range(4)]
    widths = [branch.shape[0] for branch in branches if branch is not None and branch.ndim == 4]
    whole = tensors.get("head.bottleneck.weight")
    if whole is None or whole.ndim != 4 or whole.shape[1] <= sum(widths):
        return tensors  # no PSPNet, or one that `fill` will refuse
    dense, *pooled = torch.split(whole, [whole.shape[1] - sum(widths), *widths], dim=1)
    taps = {f"head.taps.{i}.weight": part.transpose(0, 1) for i, part in enumerate(pooled)}
    return {**tensors, "head.bottleneck.weight": dense, **taps}


def _ssseg_rules(names: Iterable[str]) -> Rules:
    """`decoder.1` is a norm in FCN and the classifier elsewhere, so the family comes first."""
    starts = {name.split(".", 1)[0] for name in names}
    family = _SSSEG_PSPNET if "ppm_net" in starts else _SSSEG_FPN if "fpn_neck" in starts else _SSSEG_FCN
    return _SSSEG + family


def _rename(name: str, rules: Rules) -> str:
    for old, new in rules:
        renamed, count = re.subn("^" + old, new, name)
        if count:
            return renamed
    return name
