"""What is to be done for the images of a command line, and what an earlier run has done already."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from zoo_seg.cli.outcome import Failure, Outcome, Result
from zoo_seg.errors import OptionError
from zoo_seg.scale.jobs import Job, Work, read_mark
from zoo_seg.scale.places import Stats, opens, whole_path

T = TypeVar("T")

_NOT_SETTINGS = {"verb", "paths", "out", "overwrite", "device", "batch_size", "json", "engine", "workers", "address"}
"""Arguments that do not change what is written for an image."""
_AT_ONCE = 32
"""Questions to a storage, each of which takes as long as the way there."""
_PART = 1 << 12
"""Questions that wait for their turn, each of which takes a kB."""


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides how the results look."""
    return {name: value for name, value in vars(arguments).items() if name not in _NOT_SETTINGS}


def work_of(arguments: argparse.Namespace, device: str) -> Work:
    """What is done with every image."""
    names = ("mode", "crop", "stride", "scales", "flip", "resize", "range", "bands", "dtype", "backend")
    options = {name: getattr(arguments, name) for name in names}
    options |= {"compile": arguments.compile, "batch_size": arguments.batch_size or 1, "device": device}
    return Work(options, arguments.alpha, arguments.legend)


def plan(found: Iterable[tuple[str, str]], overlay: bool, fail: Callable[[str, str], None]) -> Iterator[Job]:
    """A job for every image; two that would write the same files: the second one fails.

    Args:
        found: images, and where their results go, without `_mask.png`.
        overlay: write overlays as well.
        fail: called with an image and the reason.
    """
    taken: dict[str, str] = {}
    for image, target in found:
        mask = f"{target}_mask.png"
        if taken.setdefault(mask, image) == image:
            yield Job(image, mask, f"{target}_overlay.png" if overlay else None)
        else:
            fail(image, f"would overwrite the result of {taken[mask]} ({mask}); give it another --out")


def refuse_other_settings(out: str, before: str | None, settings: Mapping[str, Any]) -> None:
    """Results of other settings in the same folder would be taken for this run's.

    Args:
        before: the text that an earlier run left there.
    """
    try:
        known = json.loads(before or "")
    except ValueError:
        return
    different = [name for name in settings if known.get(name) != settings[name]] if isinstance(known, dict) else []
    if different:
        what = ", ".join(f"{name} {_said(known.get(name))} (now {_said(settings[name])})" for name in different)
        raise OptionError(f"{out} holds results made with {what}; choose another --out, or add --overwrite")


def _said(value: object) -> str:
    return "as published" if value is None else repr(value)


def earlier_marks(jobs: Sequence[Job], stats: Stats) -> list[str]:
    """The mark in the files that an earlier run wrote for each job; empty where one is missing or cut short.

    Raises:
        OptionError: a file in their place is not an earlier run's, so it is not ours to lose.
    """

    def mark(job: Job) -> str:
        marks = {_mark_of(path, stats) for path in _files(job)}
        return marks.pop() if len(marks) == 1 else ""

    return _at_once(mark, jobs)


def marked(jobs: Sequence[Job], settings: Mapping[str, Any], stats: Stats) -> list[Job]:
    """The jobs with their marks: other settings, weights or images have others."""

    def mark(job: Job) -> Job:
        try:
            stat = stats(job.image)
        except Exception:  # storages have exceptions of their own; reading it will tell
            stat = None, None
        text = json.dumps([settings, whole_path(job.image), *stat], sort_keys=True)
        return replace(job, mark=hashlib.sha256(text.encode("ascii")).hexdigest())

    return _at_once(mark, jobs)


def _at_once(ask: Callable[[Job], T], jobs: Sequence[Job]) -> list[T]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = (jobs[first : first + _PART] for first in range(0, len(jobs), _PART))
        return [answer for part in parts for answer in pool.map(ask, part)]


def result(job: Job) -> Result:
    """For the outcome."""
    return {"picture": job.image, "mask": job.mask, "overlay": job.overlay}


def note(job: Job, reason: str | None, outcome: Outcome) -> None:
    """Tell the outcome what became of a job."""
    if reason is None:
        outcome.done.append(result(job))
    else:
        outcome.failed.append(Failure(job.image, reason))


def _files(job: Job) -> list[str]:
    return [job.mask] if job.overlay is None else [job.mask, job.overlay]


def _mark_of(path: str, stats: Stats) -> str:
    try:
        size, _ = stats(path)
    except OSError:
        return ""
    if size == 0:
        return ""
    try:
        with opens(path).open("rb") as file:
            mark = read_mark(file)
    except IsADirectoryError:
        mark = None
    if mark is None:
        raise OptionError(f"{path} was not written by zoo-seg predict; move it away, or choose another --out")
    return mark
