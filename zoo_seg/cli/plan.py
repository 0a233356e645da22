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
from zoo_seg.decode import suggest
from zoo_seg.errors import OptionError
from zoo_seg.inference.polygons import check_polygon_options
from zoo_seg.scale.jobs import POLYGONS, Job, Work, check_kinds
from zoo_seg.scale.marks import read_mark
from zoo_seg.scale.places import Stats, opens, whole_path

T = TypeVar("T")

COCO = "coco.json"
"""Of a run, in the folder of its results."""
_NOT_SETTINGS = {"verb", "paths", "out", "overwrite", "device", "batch_size", "json", "engine", "workers", "address"}
"""Arguments that do not change what is written for an image."""
_LATER = ("save", "min_area", "tolerance")
"""Settings that the first versions did not have, whose results stay good where these are left out."""
_FIRST = ("mask",), ("overlay", "mask")
"""The kinds of files that they wrote."""
_AT_ONCE = 32
"""Questions to a storage, each of which takes as long as the way there."""
_PART = 1 << 12
"""Questions that wait for their turn, each of which takes a kB."""


def kinds_of(arguments: argparse.Namespace, known: Sequence[str], usual: Sequence[str]) -> tuple[str, ...]:
    """The kinds of files that `--save` and `--no-overlay` ask for, in the order of `known`.

    Args:
        known: the kinds that there are.
        usual: those that are written when nothing is said.

    Raises:
        OptionError: a kind is unknown, or the options contradict each other.
        MissingExtraError: what writes a kind is not installed.
    """
    if arguments.no_overlay and arguments.save is not None:
        raise OptionError("--no-overlay is short for --save mask; leave one of them out")
    asked = ["mask"] if arguments.no_overlay else list(usual)
    if arguments.save is not None:
        asked = [kind.strip() for kind in arguments.save.split(",")]
    for kind in asked:
        if kind not in known:
            raise OptionError(f"--save {kind!r}: {suggest(kind, known)}; several with a comma between")
    for name in ("min_area", "tolerance"):
        if getattr(arguments, name) is not None and not POLYGONS.intersection(asked):
            raise OptionError(f"--{name.replace('_', '-')} is for polygons; add --save geojson or --save labelme")
    check_polygon_options(arguments.min_area or 0, arguments.tolerance or 0)
    check_kinds(asked)
    return tuple(kind for kind in known if kind in asked)


def settings_of(arguments: argparse.Namespace, kinds: tuple[str, ...]) -> dict[str, Any]:
    """What decides how the results look; the kinds of files that are written for each image count as well."""
    settings = {name: value for name, value in vars(arguments).items() if name not in {*_NOT_SETTINGS, *_LATER}}
    settings["no_overlay"] = kinds == ("mask",)
    later = {"save": None if kinds in _FIRST else ",".join(kinds)}
    later |= {"min_area": arguments.min_area, "tolerance": arguments.tolerance}
    return settings | {name: value for name, value in later.items() if value is not None}


def work_of(arguments: argparse.Namespace, kinds: Sequence[str], device: str) -> Work:
    """What is done with every image."""
    names = ("mode", "crop", "stride", "scales", "flip", "resize", "range", "dtype", "backend")
    options = {name: getattr(arguments, name) for name in names}
    options |= {"compile": arguments.compile, "batch_size": arguments.batch_size or 1, "device": device}
    options["confidence"] = "confidence" in kinds
    return Work(options, arguments.alpha, arguments.legend, arguments.min_area or 0, arguments.tolerance or 0.0)


def plan(
    found: Iterable[tuple[str, str]], kinds: tuple[str, ...], own: Sequence[str], fail: Callable[[str, str], None]
) -> Iterator[Job]:
    """A job for every image; two that would write the same files: the second one fails.

    Args:
        found: images, and where their results go, without `_mask.png`.
        kinds: of `ENDINGS`: what to write for each.
        own: files that the run writes for all of them.
        fail: called with an image and the reason.
    """
    taken: dict[str, str] = {}
    for image, target in found:
        job = Job(image, target, kinds)
        file = [*job.files.values()][-1]
        if clash := next((path for path in job.files.values() if path in own), None):
            fail(image, f"its results would overwrite the run's own file ({clash}); rename it")
        elif taken.setdefault(target, image) == image:
            yield job
        else:
            fail(image, f"would overwrite the result of {taken[target]} ({file}); give it another --out")


def refuse_other_settings(out: str, before: str | None, settings: Mapping[str, Any]) -> None:
    """Results of other settings in the same folder would be taken for this run's.

    Args:
        before: the text that an earlier run left there.
    """
    try:
        known = json.loads(before or "")
    except ValueError:
        return
    names = [*settings, *(name for name in _LATER if name not in settings)] if isinstance(known, dict) else []
    different = [name for name in names if known.get(name) != settings.get(name)]
    if different:
        what = ", ".join(
            f"{name} {_said(name, known.get(name))} (now {_said(name, settings.get(name))})" for name in different
        )
        raise OptionError(f"{out} holds results made with {what}; choose another --out, or add --overwrite")


def _said(name: str, value: object) -> str:
    if value is None:
        return "not given" if name in _LATER else "as published"
    return repr(value)


def earlier_marks(jobs: Sequence[Job], stats: Stats) -> list[str]:
    """The mark in the files that an earlier run wrote for each job; empty where one is missing or cut short.

    Raises:
        OptionError: a file in their place is not an earlier run's, so it is not ours to lose.
    """

    def mark(job: Job) -> str:
        marks = {mark_of(path, stats) for path in job.files.values()}
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
    return {"picture": job.image, "mask": None, "overlay": None, **job.files}


def note(job: Job, reason: str | None, outcome: Outcome) -> None:
    """Tell the outcome what became of a job."""
    if reason is None:
        outcome.done.append(result(job))
    else:
        outcome.failed.append(Failure(job.image, reason))


def mark_of(path: str, stats: Stats) -> str:
    """The mark in a file that an earlier run wrote; empty where it is missing or cut short.

    Raises:
        OptionError: it is not an earlier run's, so it is not ours to lose.
    """
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
