"""The GeoTIFFs among the images of `zoo-seg predict`, whose results lie on the map as well."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from zoo_seg.errors import ImageError, OptionError
from zoo_seg.images.geotiff import reference_system
from zoo_seg.images.raster import get_rasterio, is_on_a_map
from zoo_seg.inference.predicting import Predicting
from zoo_seg.scale import aerial
from zoo_seg.scale.jobs import ON_A_MAP, Job, Work, Write

_ENDINGS = (".tif", ".tiff")


def on_maps(
    jobs: Sequence[Job], arguments: argparse.Namespace, asked: Sequence[str], fail: Callable[[str, str], None]
) -> Iterator[Job]:
    """The jobs, those of GeoTIFFs marked as such; without those that cannot be done.

    Args:
        asked: the kinds of files.
        fail: called with an image and the reason.

    Raises:
        OptionError: an option is not for GeoTIFFs.
        MissingExtraError: rasterio is not installed.
    """
    for job in jobs:
        if not _is_on_a_map(job.image):
            yield job
            continue
        _check_options(job.image, arguments, asked)
        get_rasterio(job.image)
        try:
            if "geojson" in asked:
                reference_system(job.image)
        except ImageError as error:
            fail(job.image, str(error).removeprefix(f"{job.image}: "))
        else:
            yield replace(job, is_on_a_map=True)


def _is_on_a_map(image: str) -> bool:
    try:
        if image.lower().endswith(_ENDINGS):
            with Path(image).open("rb") as file:
                return is_on_a_map(file)
    except OSError:  # reading it will tell
        pass
    return False


def _check_options(image: str, arguments: argparse.Namespace, asked: Sequence[str]) -> None:
    what = f"{image} is a GeoTIFF, which is predicted"
    if arguments.mode not in (None, "slide"):
        raise OptionError(f"--mode {arguments.mode}: {what} by windows; leave it out, or choose a larger --crop")
    if arguments.scales not in (None, [1.0]):
        raise OptionError(f"--scales: {what} at its own size; leave it out")
    if arguments.resize != "published":
        raise OptionError(f"--resize: {what} at its own size; leave it out")
    if other := [kind for kind in asked if kind not in ON_A_MAP]:
        raise OptionError(
            f"--save {','.join(other)}: {image} is a GeoTIFF, of which {', '.join(ON_A_MAP)} can be written"
        )


def run(work: Work, job: Job, model: Predicting, write: Write) -> str | None:
    """Do the job of a GeoTIFF, with a bar on a terminal: the reason why it failed, or None."""
    with tqdm(unit="row", disable=None) as bar:

        def progress(done: int, rows: int) -> None:
            bar.total = rows
            bar.update(done - bar.n)

        return aerial.run(work, job, model, write, progress)
