"""Entry points for `torch.hub.load("org/zoo_seg", "pspnet_r50_os8", pretrained="ade20k")`.

They are the models of the manifest, by their names and aliases; listing them loads nothing but the standard library.
"""

from pathlib import Path as _Path
from typing import Any as _Any
from warnings import warn as _warn

import zoo_seg as _zoo_seg
from zoo_seg import zoo as _zoo

dependencies = [
    "torch",
    "torchvision",
    "timm",
    "huggingface_hub",
    "safetensors",
    "requests",
    "filelock",
    "PIL",
    "numpy",
    "tqdm",
]


def __dir__() -> list[str]:  # torch.hub looks here for what there is
    return ["dependencies", *_zoo.factory_names()]


def __getattr__(name: str) -> _Any:
    factory = None if name.startswith("_") else _zoo.find_factory(name)
    if factory is None:
        raise AttributeError(f"there is no entry point {name!r}; torch.hub.list names them")
    return factory


# torch.hub puts this folder on sys.path, but a package that is imported already wins over it.
_used, _here = _Path(_zoo_seg.__file__).resolve().parent, _Path(__file__).resolve().parent / "zoo_seg"
if _used != _here:
    _warn(
        f"torch.hub fetched zoo_seg to {_here}, but the zoo_seg already imported from {_used} is used instead; "
        "load in a fresh process to use the fetched one",
        stacklevel=2,
    )
