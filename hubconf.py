"""Entry points for `torch.hub.load("org/zoo_seg", "pspnet_r50_os8", pretrained="ade20k")`.

Every name and alias stands here by itself; listing them loads nothing but the standard library.
"""

from pathlib import Path as _Path
from warnings import warn as _warn

import zoo_seg as _zoo_seg
from zoo_seg.zoo import (
    fcn_r50_os8,
    fcn_r50_os16,
    fcn_r101_os8,
    fcn_r101_os16,
    fcn_resnet50_os8,
    fcn_resnet50_os16,
    fcn_resnet101_os8,
    fcn_resnet101_os16,
    pspnet_r50_os8,
    pspnet_r50_os16,
    pspnet_r101_os8,
    pspnet_r101_os16,
    pspnet_resnet50_os8,
    pspnet_resnet50_os16,
    pspnet_resnet101_os8,
    pspnet_resnet101_os16,
    semantic_fpn_mobilenetv4_small,
    semantic_fpn_r50,
    semantic_fpn_r101,
    semantic_fpn_resnet50,
    semantic_fpn_resnet101,
    semanticfpn_mobilenetv4_small,
    semanticfpn_r50,
    semanticfpn_r101,
    semanticfpn_resnet50,
    semanticfpn_resnet101,
)

dependencies = [
    "torch",
    "torchvision",
    "timm",
    "huggingface_hub",
    "safetensors",
    "requests",
    "filelock",
    "fsspec",
    "PIL",
    "numpy",
    "tqdm",
]

__all__ = [
    "fcn_r50_os8",
    "fcn_r50_os16",
    "fcn_r101_os8",
    "fcn_r101_os16",
    "fcn_resnet50_os8",
    "fcn_resnet50_os16",
    "fcn_resnet101_os8",
    "fcn_resnet101_os16",
    "pspnet_r50_os8",
    "pspnet_r50_os16",
    "pspnet_r101_os8",
    "pspnet_r101_os16",
    "pspnet_resnet50_os8",
    "pspnet_resnet50_os16",
    "pspnet_resnet101_os8",
    "pspnet_resnet101_os16",
    "semantic_fpn_mobilenetv4_small",
    "semantic_fpn_r50",
    "semantic_fpn_r101",
    "semantic_fpn_resnet50",
    "semantic_fpn_resnet101",
    "semanticfpn_mobilenetv4_small",
    "semanticfpn_r50",
    "semanticfpn_r101",
    "semanticfpn_resnet50",
    "semanticfpn_resnet101",
]

# torch.hub puts this folder on sys.path, but a package that is imported already wins over it.
_used, _here = _Path(_zoo_seg.__file__).resolve().parent, _Path(__file__).resolve().parent / "zoo_seg"
if _used != _here:
    _warn(
        f"torch.hub fetched zoo_seg to {_here}, but the zoo_seg already imported from {_used} is used instead; "
        "load in a fresh process to use the fetched one",
        stacklevel=2,
    )
