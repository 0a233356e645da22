"""The networks behind the page: loaded when they are chosen, and few of them held."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from zoo_seg.factory import create_model
from zoo_seg.images.reading import RGB, read_picture
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.manifest import Weights, get_weights, list_weights
from zoo_seg.model import SegmentationModel

_HELD = 2
"""Networks, and results, that are kept: as many as are seen side by side."""


class Networks:
    """Weights by name, and what each makes of a picture. Not for several threads at once.

    Args:
        own: networks that are loaded already, by the name to show; they stay. The first one is the default.
        device: where all of them run.

    Attributes:
        default: the name to begin with: of `own`, else of the weights that come with the package.
    """

    def __init__(self, own: Mapping[str, SegmentationModel] | None = None, device: str = "cpu") -> None:
        self._own, self._device = dict(own or {}), device
        self._load = lru_cache(_HELD)(_load)
        self._read = lru_cache(1)(read_picture)
        self.predict = lru_cache(_HELD)(self._predict)
        self.default = next(iter(self._own), None) or _packaged().id

    def names(self) -> list[str]:
        """All that can be chosen: what needs no download first, then the manifests' order."""
        records = sorted(list_weights(), key=lambda record: not _is_packaged(record))
        return list(dict.fromkeys([*self._own, *(record.id for record in records)]))

    def facts(self, name: str) -> str:
        """What one wants to know of weights, in a line; empty where nobody recorded anything."""
        model = self._own.get(name)
        record = model.weights if model else get_weights(name)
        if record is None:
            return ""
        miou = "" if record.miou is None else f" · mIoU {record.miou:g} %"
        return f"{record.num_classes} classes of {record.dataset}{miou} · {record.parameters / 1e6:.1f} M parameters"

    def picture(self, path: str) -> RGB:
        """The pixels of a file, read once for all networks; raises as `read_picture` does."""
        return self._read(path)

    def _predict(self, path: str, name: str) -> Segmentation:
        """What the network of this name makes of a picture file; raises as `create_model` and `predict` do."""
        picture = self.picture(path)  # first: a broken file is not worth a download
        model = self._own.get(name) or self._load(name)
        return model.predict(picture, device=self._device)


def _load(name: str) -> SegmentationModel:
    record = get_weights(name)
    return create_model(record.model, record)


def _packaged() -> Weights:
    return next(record for record in list_weights() if _is_packaged(record))


def _is_packaged(record: Weights) -> bool:
    return any(file.packaged for file in record.files)
