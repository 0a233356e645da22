"""The networks behind the page: loaded when they are chosen, and few of them held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from threading import Condition, Lock

from zoo_seg.demo.gate import Upload
from zoo_seg.errors import DownloadError, OptionError
from zoo_seg.factory import create_model
from zoo_seg.hub.cache import fetch, local
from zoo_seg.images.reading import RGB, read_image
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.manifest import Weights, get_weights, list_weights
from zoo_seg.model import SegmentationModel

_HELD = 2
"""Networks, and results, that are kept: as many as are seen side by side."""
_FETCHES = 4
"""Downloads at a time."""
_PATIENCE = 5
"""Seconds to wait for somebody else's download."""


class Networks:
    """Weights by name, and what each makes of an image, for many threads: one computes at a time, beside downloads.

    Args:
        own: networks that are loaded already, by the name to show; they stay. The first one is the default.
        device: where all of them run.

    Attributes:
        default: the name to begin with: of `own`, else of the weights that come with the package.

    Raises:
        OptionError: one of them is not for RGB images.
    """

    def __init__(self, own: Mapping[str, SegmentationModel] | None = None, device: str = "cpu") -> None:
        self._own, self._device = dict(own or {}), device
        for name, model in self._own.items():
            if model.in_chans != 3 or model.preprocess.bands:
                raise OptionError(
                    f"{name} takes images of {model.in_chans} channels, of which a browser shows none; expected a "
                    "network for RGB images. 'zoo-seg predict' takes this one"
                )
        self._load = lru_cache(_HELD)(_load)
        self._read = lru_cache(1)(read_image)
        self._predicted = lru_cache(_HELD)(self._predict)
        self._computing, self._fetches = Lock(), Condition()
        self._fetching: set[str] = set()
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

    def image(self, image: str | Upload) -> RGB:
        """The pixels of an image, read once for all networks; raises as `read_image` does."""
        with self._computing:
            return self._read(image)

    def predict(self, image: str | Upload, name: str) -> Segmentation:
        """What the network of this name makes of an image; raises as `read_image`, `create_model` and `predict` do.

        Args:
            image: hashable, such as a path.

        Raises:
            DownloadError: others wait for these weights, or for too many; the message says to come again.
        """
        self.image(image)  # first: a broken file is not worth a download
        if name not in self._own and local(get_weights(name)) is None:
            with self._turn_to_fetch(name):
                fetch(get_weights(name))
        with self._computing:
            return self._predicted(image, name)

    @contextmanager
    def _turn_to_fetch(self, name: str) -> Iterator[None]:
        """Weights are fetched once, and few at a time; whoever waits gives up before all threads do."""
        with self._fetches:
            if not self._fetches.wait_for(
                lambda: name not in self._fetching and len(self._fetching) < _FETCHES, _PATIENCE
            ):
                raise DownloadError(
                    f"others fetch {', '.join(sorted(self._fetching))}; choose {name} again in a minute"
                )
            self._fetching.add(name)
        try:
            yield
        finally:
            with self._fetches:
                self._fetching.remove(name)
                self._fetches.notify_all()

    def _predict(self, image: str | Upload, name: str) -> Segmentation:
        model = self._own.get(name) or self._load(name)
        return model.predict(self._read(image), device=self._device)


def _load(name: str) -> SegmentationModel:
    record = get_weights(name)
    return create_model(record.model, record)


def _packaged() -> Weights:
    return next(record for record in list_weights() if _is_packaged(record))


def _is_packaged(record: Weights) -> bool:
    return any(file.packaged for file in record.files)
