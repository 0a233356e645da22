"""Everything in a data set is read once before time is spent on training with it."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from zoo_seg import settings
from zoo_seg.data.findings import DataReport, Size
from zoo_seg.data.layouts import DIVIDE, SegmentationData
from zoo_seg.data.samples import Listing, Sample
from zoo_seg.data.tally import Duplicates, Seen, Tally
from zoo_seg.decode import decode, read_json
from zoo_seg.errors import DataError, ImageError, ManifestError, OptionError
from zoo_seg.images.reading import read_image

_RULES = 4
"""Goes up when this folder judges differently, so that remembered reports are forgotten."""


_PARTS = {"train": "", "val": f"; {DIVIDE}"}
"""What training needs, and what to do where there is none."""


def check_data(
    data: SegmentationData,
    splits: Sequence[str] | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
    cache: bool = False,
) -> DataReport:
    """Read every image and mask and report what is wrong with them.

    Args:
        data: what `open_data` returned.
        splits: which parts; by default all, and train and val must be among them.
        workers: threads that read; by default two for each processor, as they also wait for the disk.
        progress: show a bar where there is a terminal.
        cache: remember in the cache folder that all was well; as long as no file's size or time changes,
            the next check reads none.

    Raises:
        OptionError: there is no such split, or `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise OptionError(f"workers is {workers}, expected at least 1")
    listings = {split: data.listing(split) for split in dict.fromkeys(splits or data.splits)}
    memory = _Memory(data, splits, listings) if cache else None
    report = memory.recall() if memory else None
    if report is None:
        report = _check(data, listings, workers or _workers(), progress)
        report = report if splits else _with_parts(report, data)
        if memory and not report.errors:
            memory.keep(report)
    return report


def _workers() -> int:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * processors, 32)


def _check(data: SegmentationData, listings: Mapping[str, Listing], workers: int, progress: bool) -> DataReport:
    tallies = {split: Tally(data, split, listing) for split, listing in listings.items()}
    duplicates = Duplicates(listings)
    users: dict[Sample, list[str]] = {}  # VOC's trainval has the files of train: each is read once
    for split, listing in listings.items():
        for sample in listing.samples:
            users.setdefault(sample, []).append(split)
    # disable=None: a bar on a terminal only
    with tqdm(
        desc="checking", total=len(users), unit=" images", leave=False, disable=None if progress else True
    ) as bar:
        for sample, seen in _in_parallel(lambda sample: _look(sample, data), users, workers):
            for split in users[sample]:
                tallies[split].add(sample, seen)
            if seen.digest:
                duplicates.add(seen.digest, sample.name, users[sample])
            bar.update()
    return DataReport(
        str(data.root),
        data.layout,
        tuple(tally.report() for tally in tallies.values()),
        tuple(message for tally in tallies.values() for message in tally.errors()),
        (*(message for tally in tallies.values() for message in tally.warnings()), *duplicates.warnings()),
        data.notes,
    )


def _with_parts(report: DataReport, data: SegmentationData) -> DataReport:
    """Of a data set as a whole: which parts it lacks."""
    return replace(
        report,
        errors=(
            *report.errors,
            *(f"there is no split {part!r}{hint}" for part, hint in _PARTS.items() if part not in data.splits),
        ),
        warnings=(*report.warnings, *(f"{half}: left out" for half in data.halves if not half.startswith("test "))),
    )


def _in_parallel(
    look: Callable[[Sample], Seen], samples: Iterable[Sample], workers: int
) -> Iterator[tuple[Sample, Seen]]:
    """In order, with few of them waiting. Threads do: Pillow leaves the interpreter to others while it decodes."""
    waiting: deque[tuple[Sample, Future[Seen]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for sample in samples:
            waiting.append((sample, pool.submit(look, sample)))
            if len(waiting) > 4 * workers:
                first, seen = waiting.popleft()
                yield first, seen.result()
        for first, seen in waiting:
            yield first, seen.result()


# --- one image --------------------------------------------------------------------------------


def _look(sample: Sample, data: SegmentationData) -> Seen:
    size = digest = stored = mismatch = None
    unreadable = []
    try:
        height, width, _ = read_image(sample.image, data.range).shape
        size = height, width
        digest = hashlib.blake2b(sample.image.read_bytes(), digest_size=16).digest()
    except ImageError as error:
        unreadable.append(_reason(sample.image, error, data.root))
    try:
        stored = data.count_labels(sample)
    except DataError as error:
        unreadable.append((data.name_labels(sample), _reason(sample.mask, error, data.root)[1]))
    if size and stored and size != stored.size:
        mismatch = _mismatch(sample, size, stored.size, data.root)
    return Seen(size, digest, stored, tuple(unreadable), mismatch)


def _reason(path: Path, error: Exception, root: Path) -> tuple[str, str]:
    return path.relative_to(root).as_posix(), str(error).removeprefix(f"{path}: ")


def _mismatch(sample: Sample, pixels: Size, mask: Size, root: Path) -> str:
    text = f"{sample.image.relative_to(root).as_posix()} is {_wide(pixels)} pixels, its mask {_wide(mask)}"
    if pixels == mask[::-1]:
        with Image.open(sample.image) as image:
            if (image.height, image.width) == mask:
                text += " (the EXIF orientation turns the image: turn the mask as well)"
    return text


def _wide(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


# --- what is remembered -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Remembered:
    """A report and what it was made from."""

    key: str
    report: DataReport


class _Memory:
    """One file in the cache folder for a data set and its splits."""

    def __init__(self, data: SegmentationData, splits: Sequence[str] | None, listings: Mapping[str, Listing]) -> None:
        place = repr((str(data.root.resolve()), data.layout, splits))
        self.path = settings.home() / "checked" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
        self.key = _key(data, listings)

    def recall(self) -> DataReport | None:
        """The report on files that have not changed since."""
        if not self.path.is_file():
            return None
        try:
            remembered: _Remembered = read_json(self.path, lambda raw: decode(_Remembered, raw, ()))
        except ManifestError:  # of another version
            return None
        return remembered.report if remembered.key == self.key else None

    def keep(self, report: DataReport) -> None:
        part = self.path.with_name(f".{uuid.uuid4().hex}.part")
        with suppress(OSError):  # a full disk or a cache that cannot be written: then it is checked again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(asdict(_Remembered(self.key, report))), encoding="utf-8")
            part.replace(self.path)


def _key(data: SegmentationData, listings: Mapping[str, Listing]) -> str:
    """Changes with the rules, the classes, and every file's path, size and time."""
    digest = hashlib.sha256(repr((_RULES, str(data.root), data.labels, data.range, data.legend)).encode())
    for split, listing in listings.items():
        digest.update(repr((split, data.halves, replace(listing, samples=()))).encode())
        for sample in listing.samples:
            for path in (sample.image, sample.mask):
                status = path.stat()
                digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
