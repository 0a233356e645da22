"""HRNet: branches from stride 4 to 32 side by side, which exchange what they know again and again.

Sun et al. 2019 (1904.04514), where it is HRNetV2. Parameters have the paper's names, which are timm's and those of the
projects that published segmentation networks. These enlarge coarser maps bilinearly, timm's `hrnet_*` do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.resnet import BasicBlock, Bottleneck
from zoo_seg.errors import OptionError
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.resample import resize


def _conv_norm(width: int, channels: int, kernel_size: int, stride: int = 1, *, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(width, channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), *([nn.ReLU(inplace=True)] if act else []))


class Exchange(nn.Module):
    """Residual blocks on every branch, then every map becomes the sum of all, brought to its size and width.

    Maps (N, widths[i], h_i, w_i), finest first -> the same shapes. Coarser maps are convolved before they are enlarged.
    """

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width, 1, 1) for _ in range(blocks))) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for target, paths in enumerate(self.fuse_layers):
            assert isinstance(paths, nn.ModuleList)
            own = maps[target]
            size = (own.shape[-2], own.shape[-1])
            total: Tensor | None = None
            for source, (path, x) in enumerate(zip(paths, maps, strict=True)):
                if source != target:
                    each = path(x) if source < target else _enlarge(path(x), 2 ** (source - target), size)
                    total = each if total is None else total.add_(each)
            assert total is not None
            fused.append(total.add_(own).relu_())
        return fused


def _enlarge(x: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """To a finer branch's size: a multiple, which is resized once more where it is too large, as published."""
    return resize(resize(x, (factor * x.shape[-2], factor * x.shape[-1])), size)


def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From one branch to another: nothing, a 1x1 convolution, or as many halvings as there are branches between."""
    if source == target:
        return nn.Identity()
    if source > target:
        return _conv_norm(widths[source], widths[target], 1, act=False)
    steps = [_conv_norm(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _conv_norm(widths[source], widths[target], 3, 2, act=False))


class HRNet(nn.Module):
    """(N, in_chans, H, W), of any size -> up to four feature maps, at strides 4, 8, 16 and 32.

    Args:
        width: channels of the finest map; each further one has twice as many.
        modules: how many exchanges the stages of two, three and four branches have.
        blocks: how many residual blocks stand on a branch before each, and in the first stage.
        output_stride: 32, which None is too.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all four.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        width: int,
        modules: tuple[int, int, int],
        blocks: int,
        *,
        output_stride: int | None = None,
        in_chans: int = 3,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        if output_stride not in (None, 32):
            raise OptionError(f"an HRNet's output stride is {output_stride}; expected 32, leave it out")
        if levels is not None and not 1 <= levels <= 4:
            raise OptionError(f"{levels} feature maps are asked for; HRNet has 1 to 4")
        widths = [width << i for i in range(4)]
        self._skipped = 4 - (levels or 4)
        self.channels: tuple[int, ...] = tuple(widths[self._skipped :])
        self.strides: tuple[int, ...] = (4, 8, 16, 32)[self._skipped :]

        self.conv1 = nn.Conv2d(in_chans, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.act = nn.ReLU(inplace=True)
        shortcut = _conv_norm(64, 256, 1, act=False)
        self.layer1 = nn.Sequential(
            Bottleneck(64, 64, 1, 1, shortcut), *(Bottleneck(256, 64, 1, 1) for _ in range(blocks - 1))
        )
        # A stage's new branch starts from the coarsest map of the stage before.
        coarser = nn.Sequential(_conv_norm(256, widths[1], 3, 2))
        self.transition1 = nn.ModuleList([_conv_norm(256, width, 3), coarser])
        for stage, count in enumerate(modules, 2):
            if stage > 2:
                start = nn.Sequential(_conv_norm(widths[stage - 2], widths[stage - 1], 3, 2))
                same = (nn.Identity() for _ in range(stage - 1))
                self.add_module(f"transition{stage - 1}", nn.ModuleList([*same, start]))
            exchanges = (Exchange(widths[:stage], blocks) for _ in range(count))
            self.add_module(f"stage{stage}", nn.Sequential(*exchanges))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.act(self.bn1(self.conv1(x)))
        maps = [self.layer1(self.act(self.bn2(self.conv2(x))))]
        for stage in (2, 3, 4):
            starts = self.get_submodule(f"transition{stage - 1}")
            assert isinstance(starts, nn.ModuleList)
            maps = [start(each) for start, each in zip(starts, [*maps, maps[-1]], strict=True)]
            maps = self.get_submodule(f"stage{stage}")(maps)
        return maps[self._skipped :]


_ARCHITECTURES = {
    "hrnetv2_w18_small": (18, (1, 3, 2), 2),
    "hrnetv2_w18": (18, (1, 4, 3), 4),
    "hrnetv2_w48": (48, (1, 4, 3), 4),
}
_TIMM = {"hrnetv2_w18_small": "hrnet_w18_small_v2", "hrnetv2_w18": "hrnet_w18", "hrnetv2_w48": "hrnet_w48"}
"""Under which names timm has the ImageNet weights."""


def _create(
    name: str,
    *,
    output_stride: int | None = None,
    in_chans: int = 3,
    levels: int | None = None,
    pretrained: bool = False,
) -> HRNet:
    backbone = HRNet(*_ARCHITECTURES[name], output_stride=output_stride, in_chans=in_chans, levels=levels)
    if pretrained:
        from zoo_seg.backbones.timm_backbone import imagenet_weights

        weights = imagenet_weights(_TIMM[name], in_chans)  # with the modules of the classifier
        backbone.load_state_dict({key: weights[key] for key in backbone.state_dict()})
    return backbone


_PARTS = ("conv{}.", "bn{}.", "layer1.", "transition{}.", "stage{}.")
_NAMES = KeyMap(tuple((part, part) for part in _PARTS))
for _name in _ARCHITECTURES:
    register_backbone(_name, partial(_create, _name), key_maps={"mmseg": _NAMES, "ssseg": _NAMES})
