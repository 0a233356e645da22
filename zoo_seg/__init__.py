"""zoo_seg: published semantic segmentation networks in one line, and a class map from a picture in one more.

    import zoo_seg
    model = zoo_seg.pspnet_resnet50_os8(pretrained="ade20k")
    model.predict("street.jpg").overlay().save("out.png")

Importing the package loads no torch; the first call of a factory does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo_seg.errors import ZooSegError
from zoo_seg.manifest import Weights, get_weights, list_models, list_weights
from zoo_seg.version import __version__
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

if TYPE_CHECKING:
    from zoo_seg import evaluation as evaluation
    from zoo_seg import inference as inference
    from zoo_seg.export.loaded import ExportedModel, from_exported
    from zoo_seg.export.write import export
    from zoo_seg.factory import build_model, create_model, from_pretrained
    from zoo_seg.inference.predictor import Predictor
    from zoo_seg.inference.segmentation import Segmentation
    from zoo_seg.model import SegmentationModel
    from zoo_seg.training.finetune import finetune

__all__ = [
    "ExportedModel",
    "Predictor",
    "Segmentation",
    "SegmentationModel",
    "Weights",
    "ZooSegError",
    "__version__",
    "build_model",
    "create_model",
    "evaluation",
    "export",
    "fcn_r50_os8",
    "fcn_r50_os16",
    "fcn_r101_os8",
    "fcn_r101_os16",
    "fcn_resnet50_os8",
    "fcn_resnet50_os16",
    "fcn_resnet101_os8",
    "fcn_resnet101_os16",
    "finetune",
    "from_exported",
    "from_pretrained",
    "get_weights",
    "inference",
    "list_models",
    "list_weights",
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

# Names whose module needs torch, imported when they are first used.
_LAZY = {
    "ExportedModel": "zoo_seg.export.loaded",
    "Predictor": "zoo_seg.inference.predictor",
    "Segmentation": "zoo_seg.inference.segmentation",
    "SegmentationModel": "zoo_seg.model",
    "build_model": "zoo_seg.factory",
    "create_model": "zoo_seg.factory",
    "evaluation": "zoo_seg",
    "export": "zoo_seg",
    "finetune": "zoo_seg.training.finetune",
    "from_exported": "zoo_seg.export.loaded",
    "from_pretrained": "zoo_seg.factory",
    "inference": "zoo_seg",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see zoo_seg.list_models()")
    import importlib

    if _LAZY[name] == "zoo_seg":  # a package of its own
        return importlib.import_module(f"zoo_seg.{name}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
