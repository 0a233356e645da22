"""`zoo-seg predict`"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from zoo_seg.cli.network import check_looks, device_of, load_predicting
from zoo_seg.cli.pictures import SETTINGS, is_clip, pictures, trouble
from zoo_seg.cli.plan import note, plan, refuse_other_results, result, settings_of, split, work_of
from zoo_seg.cli.report import Failure, Report
from zoo_seg.errors import OptionError
from zoo_seg.inference.picture import check_range
from zoo_seg.inference.segmentation import write_png
from zoo_seg.scale.jobs import Job
from zoo_seg.scale.places import Times, is_url, times


class Engine(Protocol):
    """Where the pictures are and who predicts them."""

    def found(self, paths: Sequence[str], fail: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
        """Every picture, and where its results go, without `_mask.png`; `fail` is told what cannot be read."""

    def times(self) -> Times:
        """The times of results and pictures."""

    def settings(self) -> str | None:
        """What an earlier run left in the folder of the results."""

    def begin(self, settings: str) -> None:
        """Get the network, and leave the settings for a later run."""

    def predict(self, jobs: list[Job], report: Report) -> str:
        """Do the jobs; the report is told of each. Returns what is to be said of it at the end."""


def run(arguments: argparse.Namespace) -> int:
    """Predict every picture; go on past a broken one, name it at the end and return 1."""
    engine = _engine(arguments)
    if engine is None:
        from zoo_seg.cli import clip  # needs an extra

        return clip.run(arguments)
    report = Report()

    def fail(picture: str, reason: str) -> None:
        report.failed.append(Failure(picture, reason))

    jobs = list(plan(engine.found(arguments.paths, fail), not arguments.no_overlay, fail))
    settings = settings_of(arguments)
    if not arguments.overwrite:
        known = engine.times()
        refuse_other_results(_out(arguments), engine.settings(), settings, jobs, known)
        kept, jobs = split(jobs, known)
        report.kept = [result(job) for job in kept]
    where = f"results in {_out(arguments)}"
    if jobs:
        engine.begin(json.dumps(settings, indent=2) + "\n")
    try:
        if jobs:
            where += engine.predict(jobs, report)
    finally:  # what was done before an interruption as well
        report.tell(arguments.json, where)
    return 1 if report.failed else 0


def _engine(arguments: argparse.Namespace) -> Engine | None:
    """The engine, or None for a clip; refuses what cannot be done before anything is fetched or loaded."""
    out = Path(arguments.out)
    if out.exists() and not out.is_dir() and not is_clip(out):
        raise OptionError(f"--out {out} is a file; expected a folder")
    if not 0 <= arguments.alpha <= 1:
        raise OptionError(f"--alpha is {arguments.alpha}; expected a number from 0 to 1")
    check_range(arguments.range)
    if arguments.json not in (None, "-"):
        path = Path(arguments.json)
        if path.suffix.lower() != ".json":  # a picture that was meant as a PATH must not be overwritten
            raise OptionError(f"--json {path}; expected a file that ends in .json, or - for stdout")
        path.parent.mkdir(parents=True, exist_ok=True)
    has_clip = any(is_clip(Path(path)) for path in (*arguments.paths, out))
    if arguments.engine == "ray":
        from zoo_seg.cli.cluster import Ray  # needs an extra

        if has_clip:
            raise OptionError("a clip is one picture after the other: leave out --engine ray")
        return Ray(arguments)
    for option in ("workers", "address"):
        if getattr(arguments, option) is not None:
            raise OptionError(f"--{option} is for a cluster; add --engine ray")
    for path in (*arguments.paths, arguments.out):
        if is_url(path):
            raise OptionError(f"{path} is a URL, which the cluster's workers read and write; add --engine ray")
    check_looks(arguments.mode, arguments.scales, arguments.flip, arguments)
    return None if has_clip else Local(arguments)


def _out(arguments: argparse.Namespace) -> str:
    return arguments.out if is_url(arguments.out) else str(Path(arguments.out))


class Local:
    """This machine, in one process."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, Path(arguments.out)

    def found(self, paths: Sequence[str], fail: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
        for picture, folder in pictures(paths, lambda path, reason: fail(str(path), reason)):
            if reason := trouble(picture):  # known before any weights are fetched
                fail(str(picture), reason)
            else:
                yield str(picture), str(self.out / folder / picture.stem)

    def times(self) -> Times:
        return times(str(self.out))

    def settings(self) -> str | None:
        try:
            return (self.out / SETTINGS).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def begin(self, settings: str) -> None:
        self.model = load_predicting(self.arguments)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / SETTINGS).write_text(settings, encoding="utf-8")

    def predict(self, jobs: list[Job], report: Report) -> str:
        work = work_of(self.arguments, device_of(self.arguments))
        reasons = work.on(jobs, self.model, Path, _write)
        # disable=None: a bar on a terminal only
        for job, reason in zip(jobs, tqdm(reasons, total=len(jobs), unit="picture", disable=None), strict=True):
            note(job, reason, report)
        return ""


def _write(image: Image.Image, address: str, **options: Any) -> None:
    write_png(image, Path(address), **options)
