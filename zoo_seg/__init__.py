"""zoo_seg: published semantic segmentation networks in one line, and a class map from an image in one more.

    import zoo_seg
    model = zoo_seg.pspnet_resnet50_os8(pretrained="ade20k")
    model.predict("street.jpg").overlay().save("out.png")

Importing the package loads no torch; the first call of a factory does. The factories are the models of the manifest, by
their names and aliases; `__init__.pyi` has them for editors and type checkers.
"""

from __future__ import annotations

from typing import Any

from zoo_seg import zoo as _zoo
from zoo_seg.errors import ZooSegError as ZooSegError
from zoo_seg.manifest import Weights as Weights
from zoo_seg.manifest import get_weights as get_weights
from zoo_seg.manifest import list_models as list_models
from zoo_seg.manifest import list_weights as list_weights
from zoo_seg.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted({*_zoo.EXPORTS, *_zoo.factory_names()})
    if name in _zoo.EXPORTS:
        import importlib

        module = _zoo.EXPORTS[name]
        if f"{module}.".startswith(f"zoo_seg.{name}."):  # a package of this name
            return importlib.import_module(f"zoo_seg.{name}")
        value = globals()[name] = getattr(importlib.import_module(module), name)
        return value
    factory = None if name.startswith("_") else _zoo.find_factory(name)
    if factory is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see zoo_seg.list_models()")
    return factory


def __dir__() -> list[str]:
    return sorted({*globals(), *_zoo.EXPORTS, *_zoo.factory_names()})
