"""GeoTIFFs in, GeoTIFFs out: what is done with an aerial image, which is predicted row by row."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from zoo_seg.errors import ImageError
from zoo_seg.images.geotiff import reference_system
from zoo_seg.inference.geotiff import overview, predict_raster, raster_polygons
from zoo_seg.inference.polygons import feature, feature_collection
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.segmentation import whole
from zoo_seg.scale.jobs import Job, Work, Write
from zoo_seg.scale.marks import marked_png, marking_json, tiff_software


def run(
    work: Work, job: Job, model: Predicting, write: Write, progress: Callable[[int, int], object] | None = None
) -> str | None:
    """Do the job of a GeoTIFF: the reason why it failed, or None.

    Args:
        progress: see `Predicting.predict_raster`.

    Raises:
        OptionError: an option is not allowed.
        OutOfMemoryError: a row of windows is too much for the device.
    """
    folder = Path(job.target).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as parts:
            _write(work, job, model, write, Path(parts), progress)
    except ImageError as error:
        return str(error).removeprefix(f"{job.image}: ")
    except OSError as error:
        return f"its results cannot be written ({error.strerror or error}): {folder}"
    return None


def _write(
    work: Work,
    job: Job,
    model: Predicting,
    write: Write,
    parts: Path,
    progress: Callable[[int, int], object] | None,
) -> None:
    """The mask last: it means that the image is done."""
    files, options, image = job.files, work.options, Path(job.image)
    mask, confidence = parts / "mask.tif", parts / "confidence.tif"
    predictor = model.predictor(**{name: options[name] for name in ("device", "dtype", "compile", "backend")})
    wanted = predictor.wanted(options["range"], options["bands"])
    predict_raster(
        predictor,
        image,
        mask,
        wanted=wanted,
        test=model.test_options("slide", options["crop"], options["stride"], (1.0,), options["flip"]),
        confidence=confidence if "confidence" in files else None,
        software=tiff_software(job.mark),
        progress=progress,
    )
    if "overlay" in files:
        shown = overview(image, mask, wanted, model.classes, model.palette)
        write(marked_png(shown.overlay(work.alpha, legend=work.legend), job.mark, compress_level=1), files["overlay"])
    if "geojson" in files:
        transform, crs = reference_system(image)
        about = feature_collection([], model.palette, transform=transform, crs=crs)
        polygons = raster_polygons(mask, model.classes, work.min_area, work.tolerance)
        with whole(Path(files["geojson"])) as part, part.open("wb") as file, marking_json(file, job.mark) as add:
            add(json.dumps(about)[1:-2])  # up to the features, which are as many as there are
            for number, each in enumerate(polygons):
                add(f"{', ' if number else ''}{json.dumps(feature(each, model.palette, transform))}")
            add("]")
    for kind, part in (("confidence", confidence), ("mask", mask)):
        if kind in files:
            os.replace(part, files[kind])  # noqa: PTH105
