"""`zoo-seg predict`"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from zoo_seg.cli.inputs import LIST, SETTINGS, entries, images, is_clip, trouble, whole_name
from zoo_seg.cli.network import check_test_arguments, device_of, load_predicting, weights_sha256
from zoo_seg.cli.outcome import Failure, Outcome
from zoo_seg.cli.plan import earlier_marks, marked, note, plan, refuse_other_settings, result, settings_of, work_of
from zoo_seg.errors import OptionError
from zoo_seg.hub.files import replacing
from zoo_seg.images.bands import check_range
from zoo_seg.inference.segmentation import write_png
from zoo_seg.scale.jobs import Job
from zoo_seg.scale.places import Stats, is_url, stats


class Engine(Protocol):
    """Where the images are and who predicts them."""

    def found(self, paths: Sequence[str], fail: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
        """Every image, and where its results go, without `_mask.png`; `fail` is told what cannot be read."""

    def stats(self) -> Stats:
        """The sizes and times of results and images."""

    def settings(self) -> str | None:
        """What an earlier run left in the folder of the results."""

    def begin(self, settings: str) -> None:
        """Get the network, and leave the settings for a later run."""

    def predict(self, jobs: list[Job], outcome: Outcome) -> str:
        """Do the jobs; the outcome is told of each. Returns what is to be said of it at the end."""


def run(arguments: argparse.Namespace) -> int:
    """Predict every image; go on past a broken one, name it at the end and return 1."""
    engine = _engine(arguments)
    if engine is None:
        from zoo_seg.cli import clip  # needs an extra

        return clip.run(arguments)
    outcome = Outcome()

    def fail(image: str, reason: str) -> None:
        outcome.failed.append(Failure(image, reason))

    jobs = list(plan(engine.found(arguments.paths, fail), not arguments.no_overlay, fail))
    settings = settings_of(arguments)
    if not arguments.overwrite:
        refuse_other_settings(_out(arguments), engine.settings(), settings)
    if jobs:
        known = engine.stats()
        earlier = earlier_marks(jobs, known)
        settings["weights_sha256"] = weights_sha256(arguments)
        jobs = marked(jobs, settings, known)
        if not arguments.overwrite:
            outcome.kept = [result(job) for job, mark in zip(jobs, earlier, strict=True) if mark == job.mark]
            jobs = [job for job, mark in zip(jobs, earlier, strict=True) if mark != job.mark]
    where = f"results in {_out(arguments)}"
    if jobs:
        engine.begin(json.dumps(settings, indent=2) + "\n")
    try:
        if jobs:
            where += engine.predict(jobs, outcome)
    finally:  # what was done before an interruption as well
        outcome.tell(arguments.json, where)
    return 1 if outcome.failed else 0


def _engine(arguments: argparse.Namespace) -> Engine | None:
    """The engine, or None for a clip; refuses what cannot be done before anything is fetched or loaded."""
    out = Path(arguments.out)
    if out.exists() and not out.is_dir() and not is_clip(out):
        raise OptionError(f"--out {out} is a file; expected a folder")
    if not 0 <= arguments.alpha <= 1:
        raise OptionError(f"--alpha is {arguments.alpha}; expected a number from 0 to 1")
    check_range(arguments.range)
    if arguments.json not in (None, "-"):
        Outcome.check(arguments.json)
    has_clip = any(is_clip(Path(path)) for path in (*arguments.paths, out))
    if arguments.engine == "ray":
        from zoo_seg.cli.cluster import Ray  # needs an extra

        if has_clip:
            raise OptionError("a clip is one image after the other: leave out --engine ray")
        return Ray(arguments)
    for option in ("workers", "address"):
        if getattr(arguments, option) is not None:
            raise OptionError(f"--{option} is for a cluster; add --engine ray")
    for path in (*arguments.paths, arguments.out):
        if is_url(path):
            raise OptionError(f"{path} is a URL, which the cluster's workers read and write; add --engine ray")
    check_test_arguments(arguments)
    return None if has_clip else Local(arguments)


def _out(arguments: argparse.Namespace) -> str:
    return arguments.out if is_url(arguments.out) else str(Path(arguments.out))


class Local:
    """This machine, in one process."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, Path(arguments.out)

    def found(self, paths: Sequence[str], fail: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
        seen: set[Path] = set()
        for image, name in (each for path in paths for each in self._found(path, fail)):
            if image in seen:
                continue
            seen.add(image)
            if reason := trouble(image):  # known before any weights are fetched
                fail(str(image), reason)
            else:
                yield str(image), str(self.out / name)

    def _found(self, path: str, fail: Callable[[str, str], None]) -> Iterator[tuple[Path, str | Path]]:
        """Every image of a folder, list or glob, and its name below the results: its folders and its stem."""
        if path.lower().endswith(LIST) and not Path(path).is_dir():
            try:
                named = entries(Path(path).read_text(encoding="utf-8", errors="surrogateescape"))
            except (OSError, ValueError) as error:
                fail(path, trouble(Path(path)) or str(error))
                return
            for entry in named:
                if is_url(entry):
                    fail(entry, "is a URL, which the cluster's workers read; add --engine ray")
                else:
                    yield Path(entry), whole_name(entry)
            return
        for image, folder in images(path, lambda path, reason: fail(str(path), reason)):
            yield image, folder / image.stem

    def stats(self) -> Stats:
        return stats(str(self.out))

    def settings(self) -> str | None:
        try:
            return (self.out / SETTINGS).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def begin(self, settings: str) -> None:
        self.model = load_predicting(self.arguments)
        self.out.mkdir(parents=True, exist_ok=True)
        with replacing(self.out / SETTINGS) as part:  # a link is replaced, not written through
            part.write_text(settings, encoding="utf-8")

    def predict(self, jobs: list[Job], outcome: Outcome) -> str:
        work = work_of(self.arguments, device_of(self.arguments))
        reasons = work.run(jobs, self.model, Path, _write)
        # disable=None: a bar on a terminal only
        for job, reason in zip(jobs, tqdm(reasons, total=len(jobs), unit="image", disable=None), strict=True):
            note(job, reason, outcome)
        return ""


def _write(image: Image.Image, address: str, **options: Any) -> None:
    write_png(image, Path(address), **options)
