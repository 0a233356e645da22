"""Images in, files out: what one machine does with its share, whoever handed it out."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zoo_seg.errors import ImageError
from zoo_seg.images.reading import ImageLike
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.predictor import in_order
from zoo_seg.inference.segmentation import Segmentation


@dataclass(frozen=True)
class Job:
    """An image and the files to write for it: paths or URLs."""

    image: str
    mask: str
    overlay: str | None
    """None: the mask only."""
    mark: str = ""
    """Stands in the files: a digest of what decides them, 64 hex digits. See `read_mark`."""


class Write(Protocol):
    """Writes a PNG with Pillow's options; the file appears whole or not at all.

    Raises:
        OSError: it cannot be written there.
    """

    def __call__(self, image: Image.Image, address: str, **options: Any) -> None: ...


@dataclass(frozen=True)
class Work:
    """What is done with every image."""

    options: Mapping[str, Any]
    """Options of `Predicting.stream`."""
    alpha: float
    legend: bool

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
                folder = os.path.dirname(job.mask) or "."  # noqa: PTH120  (of a URL as well)
                return f"its results cannot be written ({error.strerror or error}): {folder}"
            return None

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files; what cannot be read is a failure
            results = model.stream([read(job.image) for job in jobs], **self.options, on_error="yield")
            ahead = 2 * self.options.get("batch_size", 1)
            yield from in_order(zip(jobs, results, strict=True), finish, ahead=ahead)

    def _write(self, job: Job, result: Segmentation, write: Write) -> None:
        """The overlay first: a mask means that the image is done."""
        mark = PngInfo()
        mark.add_text(_MARK, job.mark)
        if job.overlay is not None:
            write(result.overlay(self.alpha, legend=self.legend), job.overlay, pnginfo=mark, compress_level=1)
        write(result.indexed(), job.mask, pnginfo=mark)


_MARK = "zoo_seg"
_HEAD, _END = 256, b"IEND\xaeB`\x82"
"""Bytes in which the mark stands, and the last ones of a whole PNG."""


def read_mark(file: BinaryIO) -> str | None:
    """The mark of a PNG that `Work` wrote; empty where its end is missing; None for any other file."""
    found = re.search(rf"tEXt{_MARK}\0([0-9a-f]{{64}})".encode(), file.read(_HEAD))
    if found is None:
        return None
    file.seek(-len(_END), os.SEEK_END)
    return found[1].decode() if file.read() == _END else ""
