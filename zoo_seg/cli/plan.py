"""What is to be done for the pictures of a command line, and what an earlier run has done already."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from zoo_seg.cli.report import Failure, Report, Result
from zoo_seg.errors import OptionError
from zoo_seg.scale.jobs import Job, Work
from zoo_seg.scale.places import Times

_NOT_SETTINGS = {"verb", "paths", "out", "overwrite", "device", "batch_size", "json", "engine", "workers", "address"}
"""Arguments that do not change what is written for a picture."""
_AT_ONCE = 32
"""Questions to a storage, each of which takes as long as the way there."""


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides how the results look."""
    return {name: value for name, value in vars(arguments).items() if name not in _NOT_SETTINGS}


def work_of(arguments: argparse.Namespace, device: str) -> Work:
    """What is done with every picture."""
    names = ("mode", "crop", "stride", "scales", "flip", "resize", "range", "dtype")
    looks = {name: getattr(arguments, name) for name in names}
    looks |= {"compile": arguments.compile, "batch_size": arguments.batch_size or 1, "device": device}
    return Work(looks, arguments.alpha, arguments.legend)


def plan(found: Iterable[tuple[str, str]], overlay: bool, fail: Callable[[str, str], None]) -> Iterator[Job]:
    """A job for every picture; two that would write the same files: the second one fails.

    Args:
        found: pictures, and where their results go, without `_mask.png`.
        overlay: write overlays as well.
        fail: called with a picture and the reason.
    """
    taken: dict[str, str] = {}
    for picture, target in found:
        mask = f"{target}_mask.png"
        if taken.setdefault(mask, picture) == picture:
            yield Job(picture, mask, f"{target}_overlay.png" if overlay else None)
        else:
            fail(picture, f"would overwrite the result of {taken[mask]} ({mask}); give it another --out")


def refuse_other_results(
    out: str, before: str | None, settings: Mapping[str, Any], jobs: Sequence[Job], times: Times
) -> None:
    """Results of other settings in the same folder would be taken for this run's; other files are not ours to lose.

    Args:
        before: the text that an earlier run left there.
    """
    try:
        known = json.loads(before or "")
    except ValueError:
        known = None
    if not isinstance(known, dict):
        for path in (path for job in jobs for path in _files(job)):
            if _exists(path, times):
                raise OptionError(f"{path} was not written by zoo-seg; choose another --out, or add --overwrite")
        return
    different = [name for name in settings if known.get(name) != settings[name]]
    if different:
        what = ", ".join(f"{name} {known.get(name)!r} (now {settings[name]!r})" for name in different)
        raise OptionError(f"{out} holds results made with {what}; choose another --out, or add --overwrite")


def split(jobs: Iterable[Job], times: Times) -> tuple[list[Job], list[Job]]:
    """The jobs that an earlier run has done, and those that are left."""
    done: list[Job] = []
    left: list[Job] = []
    jobs = iter(jobs)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while some := list(islice(jobs, 1 << 12)):
            for job, is_done in zip(some, pool.map(lambda job: _is_done(job, times), some), strict=True):
                (done if is_done else left).append(job)
    return done, left


def result(job: Job) -> Result:
    """For the report."""
    return {"picture": job.picture, "mask": job.mask, "overlay": job.overlay}


def note(job: Job, reason: str | None, report: Report) -> None:
    """Tell the report what became of a job."""
    if reason is None:
        report.done.append(result(job))
    else:
        report.failed.append(Failure(job.picture, reason))


def _files(job: Job) -> list[str]:
    return [job.mask] if job.overlay is None else [job.mask, job.overlay]


def _exists(path: str, times: Times) -> bool:
    try:
        times(path)
    except OSError:
        return False
    return True


def _is_done(job: Job, times: Times) -> bool:
    """The results are there and no older than the picture, as far as its storage tells."""
    try:
        written = [times(path) for path in _files(job)]
        picture = times(job.picture)
    except OSError:
        return False
    return picture is None or all(time is None or time >= picture for time in written)
