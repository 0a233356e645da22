"""Images in, files out: what one machine does with its share, whoever handed it out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zoo_seg.errors import ImageError
from zoo_seg.images.reading import ImageLike
from zoo_seg.inference.polygons import check_packages, feature_collection
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.predictor import in_order
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.scale.annotations import check_coco, labelme
from zoo_seg.scale.marks import marked_json, marked_png
from zoo_seg.scale.places import is_url

ENDINGS = {
    "overlay": "_overlay.png",
    "confidence": "_confidence.png",
    "geojson": ".geojson",
    "labelme": ".json",
    "mask": "_mask.png",
}
"""The files that can be written for an image: what follows its name, in the order of writing."""
ON_A_MAP = {
    "overlay": "_overlay.png",
    "confidence": "_confidence.tif",
    "geojson": ".geojson",
    "mask": "_mask.tif",
}
"""Those of a GeoTIFF."""
POLYGONS = {"geojson", "labelme"}
"""Those made of polygons."""


@dataclass(frozen=True)
class Job:
    """An image and the files to write for it: paths or URLs."""

    image: str
    target: str
    """Where the files go, without their endings."""
    kinds: tuple[str, ...]
    """Of `ENDINGS`."""
    mark: str = ""
    """Stands in the files: a digest of what decides them, 64 hex digits. See `read_mark`."""
    is_on_a_map: bool = False
    """It is a GeoTIFF, whose results are GeoTIFFs as well: of `ON_A_MAP`."""

    @property
    def files(self) -> dict[str, str]:
        """The path or URL of each kind, in the order of writing."""
        endings = ON_A_MAP if self.is_on_a_map else ENDINGS
        return {kind: self.target + ending for kind, ending in endings.items() if kind in self.kinds}


class Write(Protocol):
    """Writes a file, which appears whole or not at all.

    Raises:
        OSError: it cannot be written there.
    """

    def __call__(self, data: bytes, address: str) -> None: ...


@dataclass(frozen=True)
class Work:
    """What is done with every image."""

    options: Mapping[str, Any]
    """Options of `Predicting.stream`."""
    alpha: float
    legend: bool
    min_area: float = 0
    tolerance: float = 0.0
    """Of polygons."""

    def run(
        self, jobs: Sequence[Job], model: Predicting, read: Callable[[str], ImageLike], write: Write
    ) -> Iterator[str | None]:
        """Do the jobs: for each, in order, the reason why it failed, or None.

        Reading, the network and writing at the same time; few images are held, however many there are.

        Raises:
            OptionError: an option is not allowed.
            OutOfMemoryError: one image alone is too much for the device.
        """

        def finish(item: tuple[Job, Segmentation | ImageError]) -> str | None:
            job, result = item
            if isinstance(result, ImageError):
                return str(result).removeprefix(f"{job.image}: ")
            try:
                self._write(job, result, write)
            except OSError as error:
                folder = os.path.dirname(job.target) or "."  # noqa: PTH120  (of a URL as well)
                return f"its results cannot be written ({error.strerror or error}): {folder}"
            return None

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files; what cannot be read is a failure
            results = model.stream([read(job.image) for job in jobs], **self.options, on_error="yield")
            ahead = 2 * self.options.get("batch_size", 1)
            yield from in_order(zip(jobs, results, strict=True), finish, ahead=ahead)

    def _write(self, job: Job, result: Segmentation, write: Write) -> None:
        """The mask last: it means that the image is done."""
        polygons = result.polygons(self.min_area, self.tolerance) if POLYGONS.intersection(job.kinds) else []
        height, width = result.mask.shape
        place = _from_folder_of(job.target, job.image)
        about = {"file_name": place, "height": height, "width": width}
        make: dict[str, Callable[[], bytes]] = {
            "overlay": lambda: marked_png(result.overlay(self.alpha, legend=self.legend), job.mark, compress_level=1),
            "confidence": lambda: marked_png(result.confidence_image(), job.mark),
            "geojson": lambda: marked_json(feature_collection(polygons, result.palette, image=about), job.mark),
            "labelme": lambda: marked_json(labelme(polygons, place, height, width), job.mark),
            "mask": lambda: marked_png(result.indexed(), job.mark),
        }
        for kind, path in job.files.items():
            write(make[kind](), path)


def check_kinds(kinds: Sequence[str]) -> None:
    """See that what writes files of these kinds, or `"coco"`, is installed.

    Raises:
        MissingExtraError: it is not; the message names the pip command.
    """
    if POLYGONS.intersection(kinds):
        check_packages()
    if "coco" in kinds:
        check_coco()


def _from_folder_of(file: str, image: str) -> str:
    """The image's address as seen from the folder of a file, where there is a way."""
    if is_url(image) != is_url(file):
        return image
    return os.path.relpath(image, os.path.dirname(file) or ".").replace(os.sep, "/")  # noqa: PTH120
