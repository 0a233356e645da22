"""The public names: a factory for each model of the manifest, and where all others come from. Loads no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from zoo_seg.manifest import Model, Pretrained, aliases, find_model, load_manifest, published_manifest, read_manifest

if TYPE_CHECKING:
    from zoo_seg.model import SegmentationModel

EXPORTS = {
    "ExportedModel": "zoo_seg.export.loaded",
    "Predictor": "zoo_seg.inference.predictor",
    "Segmentation": "zoo_seg.inference.segmentation",
    "SegmentationModel": "zoo_seg.model",
    "Weights": "zoo_seg.manifest",
    "ZooSegError": "zoo_seg.errors",
    "__version__": "zoo_seg.version",
    "build_model": "zoo_seg.factory",
    "create_model": "zoo_seg.factory",
    "evaluation": "zoo_seg.evaluation",
    "export": "zoo_seg.export.write",
    "finetune": "zoo_seg.training.finetune",
    "from_exported": "zoo_seg.export.loaded",
    "from_pretrained": "zoo_seg.factory",
    "get_weights": "zoo_seg.manifest",
    "inference": "zoo_seg.inference",
    "list_models": "zoo_seg.manifest",
    "list_weights": "zoo_seg.manifest",
}
"""Every public name but the factories', and the module it comes from; most are imported when they are first used."""


def factory_names() -> list[str]:
    """The names of all models, and their aliases."""
    models = load_manifest().models
    return list(dict.fromkeys([*models, *(alias for name in models for alias in aliases(name))]))


def find_factory(name: str) -> Callable[..., SegmentationModel] | None:
    """The function that builds the model of this name or alias, one for all its names; None without such a model."""
    model = find_model(name)
    return None if model is None else _factory(model.name, _docstring(model))


@cache
def _factory(name: str, docstring: str) -> Callable[..., SegmentationModel]:
    def factory(
        pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
    ) -> SegmentationModel:
        from zoo_seg.factory import create_model  # here, so that listing the names loads no torch

        return create_model(name, pretrained, num_classes=num_classes, in_chans=in_chans, progress=progress)

    factory.__name__ = factory.__qualname__ = name
    factory.__module__, factory.__doc__ = "zoo_seg", docstring
    return factory


def _docstring(model: Model) -> str:
    tags = ", ".join(key.tag for key in load_manifest().keys.values() if key.model == model.name)
    return f"""{_title(model)}.

{textwrap.fill(f"Published weights: {tags or 'none'}.", 100)}

Args:
    pretrained: one of these tags, a data set for its default tag, True for the first, or a file, folder or link, as
        `zoo_seg.create_model` takes them; None for random parameters.
    num_classes: other than the weights': the classifiers are re-initialised. 21 without weights.
    in_chans: channels of the image.
    progress: show a bar while downloading.
"""


def _title(model: Model) -> str:
    stride = model.architecture.output_stride
    return f"{model.title}, output stride {stride}" if stride else model.title


# --- the stub -----------------------------------------------------------------------------------


def stub() -> str:
    """The text of `__init__.pyi`: the package's names by the published manifest, for editors and type checkers."""
    models = read_manifest(published_manifest()).models
    options = "*, num_classes: int | None = None, in_chans: int = 3, progress: bool = True"
    lines = ['"""The names of `zoo_seg`; written by `zoo-seg manifest stub`."""', ""]
    sources = {name: "zoo_seg" if module == f"zoo_seg.{name}" else module for name, module in EXPORTS.items()}
    imports = [f"from {module} import {name} as {name}" for name, module in sources.items()]
    lines += sorted([*imports, "from zoo_seg.manifest import Pretrained"])
    for name, model in models.items():
        others = [f"{alias} = {name}" for alias in aliases(name) if alias not in models]
        lines += [
            "",
            f"def {name}(",
            f"    pretrained: Pretrained = None, {options}",
            ") -> SegmentationModel:",
            f'    """{_title(model)}."""',
            *(["", *others] if others else []),
        ]
    return "\n".join(lines).rstrip() + "\n"
