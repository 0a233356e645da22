"""A data set of any kind, written as the folder that a data set of one's own is at its simplest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from zoo_seg.data.description import DESCRIPTION
from zoo_seg.data.layouts import SegmentationData
from zoo_seg.data.samples import Sample
from zoo_seg.errors import DataError, OptionError
from zoo_seg.hub.files import replacing

_SOURCE = "source.json"
"""In an unfinished folder: what it is made from."""
_AT_ONCE = 64
"""Images between two looks at the bar; they bound how many are waiting."""


def convert_data(data: SegmentationData, out: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """Write images/SPLIT/NAME, masks/SPLIT/NAME.png (class ids) and dataset.json.

    Images are links to the same files where the disk can, else copies. Everything is written to `out` with
    `.unfinished` after its name, which becomes `out` at the end; when the work is interrupted, or a mask is broken,
    the next call goes on there.

    Args:
        data: what `open_data` returned; its splits with labels are written.
        out: a new or empty folder.
        progress: show a bar where there is a terminal.

    Returns:
        `out`.

    Raises:
        OptionError: `out` holds something, or what is unfinished was made from something else.
        DataError: a split is incomplete, or labels cannot be read; what was written stays.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out} is not empty; expected a new folder")
    unfinished = out.with_name(f"{out.name}.unfinished")
    source = json.dumps([str(data.root.resolve()), data.layout, repr(data.labels), repr(data.legend)])
    if unfinished.exists() and (not (unfinished / _SOURCE).is_file() or (unfinished / _SOURCE).read_text() != source):
        raise OptionError(f"{unfinished} was made from something else; remove it, or choose another folder")
    jobs = [(split, sample) for split in data.splits for sample in data.samples(split)]
    unfinished.mkdir(parents=True, exist_ok=True)
    _write_text(unfinished / _SOURCE, source)
    # disable=None: a bar on a terminal only
    with tqdm(total=len(jobs), unit=" images", leave=False, disable=None if progress else True) as bar:
        for _ in _in_parallel(data, jobs, unfinished):
            bar.update()
    _write_text(unfinished / DESCRIPTION, json.dumps(_description(data), indent=1, ensure_ascii=False) + "\n")
    for part in (unfinished / _SOURCE, *unfinished.rglob("*.part")):  # of a process that was killed
        part.unlink()
    if out.is_dir():
        out.rmdir()
    unfinished.rename(out)
    return out


def _in_parallel(data: SegmentationData, jobs: list[tuple[str, Sample]], folder: Path) -> Iterator[None]:
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(jobs), _AT_ONCE):
            splits, samples = zip(*jobs[first : first + _AT_ONCE], strict=True)
            yield from pool.map(lambda split, sample: _write(data, split, sample, folder), splits, samples)


def _write(data: SegmentationData, split: str, sample: Sample, folder: Path) -> None:
    image = folder / "images" / split / f"{sample.name}{sample.image.suffix}"
    mask = folder / "masks" / split / f"{sample.name}.png"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    if _is_older(image, sample.image):
        with replacing(image) as part:
            _link(sample.image.resolve(), part)
    if _is_older(mask, sample.mask):
        labels = data.read_labels(sample)
        with replacing(mask) as part:
            Image.fromarray(np.ascontiguousarray(labels)).save(part, format="PNG")


def _is_older(written: Path, source: Path) -> bool:
    """Whether a file is not there, or from before its source was changed."""
    return not written.exists() or written.stat().st_mtime_ns < source.stat().st_mtime_ns


def _link(source: Path, target: Path) -> None:
    with suppress(OSError, NotImplementedError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _description(data: SegmentationData) -> dict[str, object]:
    return {
        "classes": data.classes,
        "palette": data.palette,
        "ignore_index": data.ignore_index,
        **({"range": data.range} if data.range else {}),
    }


def _write_text(path: Path, text: str) -> None:
    try:
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
