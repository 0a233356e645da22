"""Backbones of timm: the feature maps of any of its models, finest first, as (N, C, H, W)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.backbones.backbone import Backbone
from zoo_seg.errors import DownloadError, OptionError, UnknownNameError


class _PaddedBackbone(nn.Module):
    """A backbone that wants sizes to divide (ConvNeXt, Swin, VGG) made to take any size, as a ResNet does.

    The image is padded with zeros (the mean colour) at the right and bottom to a multiple of the
    coarsest stride; the maps are cut to ceil(size / stride), and are (N, C, H, W) whatever timm returns.
    """

    def __init__(self, body: nn.Module, reductions: list[int], channels_last: bool) -> None:
        super().__init__()
        self.body, self.reductions, self.channels_last = body, reductions, channels_last

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        multiple = self.reductions[-1]
        right, bottom = (_steps(side, multiple) * multiple - side for side in (width, height))
        maps = self.body(F.pad(x, (0, right, 0, bottom)))
        if self.channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        return [
            _cut(each, _steps(height, stride), _steps(width, stride))
            for each, stride in zip(maps, self.reductions, strict=True)
        ]


def _steps(side: int, stride: int) -> int:
    """side / stride, rounded up; without negative numbers, which exported graphs round the other way."""
    return (side + stride - 1) // stride


def _cut(x: Tensor, height: int, width: int) -> Tensor:
    if isinstance(height, torch.SymInt):  # a view of it would bind the exported graph to sizes that need a cut
        return x.narrow_copy(-2, 0, height).narrow_copy(-1, 0, width)
    return x[..., :height, :width]


_OF_SOME_SIZES = {"HaloAttn", "LambdaLayer", "SpaceToDepth"}
"""timm's layers whose blocks or positions fit some sizes only, padded or not."""


def _wants_multiples(module: nn.Module) -> bool:
    """A patch embedding or pooling without padding (what does not fill its last window is lost), or a fixed x2."""
    if isinstance(module, nn.Conv2d):
        return module.stride[0] > 1 and module.stride == module.kernel_size and module.padding in ((0, 0), "valid")
    if isinstance(module, nn.MaxPool2d):
        return module.padding == 0 and not module.ceil_mode
    return isinstance(module, nn.Upsample)


def find_timm_backbone(name: str, ours: Iterable[str]) -> Backbone:
    """The backbone of a timm model name, e.g. `"convnext_tiny"`.

    Args:
        ours: the names that are no model of timm's, for suggestions.

    Raises:
        UnknownNameError: timm has no such model.
    """
    base = name.split(".", 1)[0]
    # A name is all that is taken: timm would follow "hf-hub:..." to the network and "local-dir:..." to a config.
    if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(base):
        near = difflib.get_close_matches(base, [*timm.list_models(), *ours], n=3)
        raise UnknownNameError(
            f"there is no backbone {name!r}, here or in timm; "
            + (f"did you mean {' or '.join(map(repr, near))}?" if near else "timm.list_models() lists timm's")
        )
    return Backbone(name, partial(_create, name))


def imagenet_weights(name: str, in_chans: int) -> dict[str, Tensor]:
    """timm's ImageNet weights of a model, without its classifier; fetches them.

    Raises:
        OptionError: timm has none.
        DownloadError: they cannot be fetched.
    """
    if not timm.is_model(name):
        raise OptionError(f"there are no ImageNet weights of {name!r}; leave backbone_pretrained out")
    return _create(name, levels=1, in_chans=in_chans, pretrained=True).state_dict()


def _create(
    name: str,
    *,
    levels: int,
    output_stride: int | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Build it; see `Backbone.create`.

    Raises:
        OptionError: the backbone has fewer feature maps, cannot have this output stride, or is of one size only.
        DownloadError: timm's ImageNet weights cannot be fetched.
    """
    base = name.split(".", 1)[0]
    if output_stride is not None:
        options["output_stride"] = output_stride
    if getattr(timm.get_pretrained_cfg(base, allow_unregistered=True), "fixed_input_size", False):
        options["strict_img_size"] = False
    try:
        # A negative index counts from the last map, whatever the number of stages.
        body = timm.create_model(
            name,
            features_only=True,
            out_indices=tuple(range(-levels, 0)),
            in_chans=in_chans,
            pretrained=pretrained,
            **options,
        )
    except TypeError as error:
        if "strict_img_size" in str(error):
            raise OptionError(f"the backbone {name!r} takes images of one size only; choose another") from None
        if "output_stride" not in str(error):
            raise
        raise OptionError(
            f"the backbone {name!r} cannot change its output stride (asked for {output_stride}); leave it out"
        ) from None
    except OSError as error:
        raise DownloadError(
            f"timm's ImageNet weights of {name!r} cannot be fetched ({error}); check the network, "
            "or leave backbone_pretrained out"
        ) from None
    except (AssertionError, IndexError, NotImplementedError, AttributeError, RuntimeError) as error:
        if pretrained and "pretrained" in str(error).lower():
            raise OptionError(f"timm has no ImageNet weights of {name!r}; leave backbone_pretrained out") from None
        raise OptionError(
            f"the backbone {name!r} cannot give {levels} maps"
            + ("" if output_stride is None else f" at output stride {output_stride}")
            + f" ({error}); choose another from timm.list_models()"
        ) from error
    if found := sorted({type(module).__name__ for module in body.modules()} & _OF_SOME_SIZES):
        raise OptionError(f"the backbone {name!r} takes images of some sizes only ({found[0]}); choose another")
    info: Any = body.feature_info
    reductions = list(info.reduction())
    if output_stride is not None and reductions[-1] != output_stride:
        raise OptionError(
            f"the backbone {name!r} gives output stride {reductions[-1]}, not {output_stride}; leave it out"
        )
    channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
    channels = list(info.channels())
    if channels_last or any(_wants_multiples(module) for module in body.modules()):
        body = _PaddedBackbone(body, reductions, channels_last)
    body.__dict__.update(channels=tuple(channels), strides=tuple(reductions))
    return body
