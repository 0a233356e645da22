"""`zoo-seg predict`"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from zoo_seg.cli import aerial
from zoo_seg.cli.inputs import LIST, SETTINGS, entries, images, is_clip, trouble, whole_name
from zoo_seg.cli.network import check_test_arguments, device_of, load_predicting, weights_sha256
from zoo_seg.cli.outcome import Failure, Outcome
from zoo_seg.cli.plan import (
    COCO,
    earlier_marks,
    kinds_of,
    mark_of,
    marked,
    note,
    plan,
    refuse_other_settings,
    result,
    settings_of,
    work_of,
)
from zoo_seg.errors import OptionError
from zoo_seg.hub.files import replacing
from zoo_seg.images.bands import check_range
from zoo_seg.inference.segmentation import whole
from zoo_seg.scale.annotations import write_coco
from zoo_seg.scale.jobs import ENDINGS, Job
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

    asked = _kinds(arguments)
    kinds = tuple(kind for kind in ENDINGS if kind in asked or (kind == "mask" and "coco" in asked))
    out = _out(arguments)
    own = _own_files(arguments, out, asked)
    planned = list(plan(engine.found(arguments.paths, fail), kinds, own, fail))
    if isinstance(engine, Local):
        planned = list(aerial.on_maps(planned, arguments, asked, fail))
    jobs = planned
    settings = settings_of(arguments, kinds)
    if not arguments.overwrite:
        refuse_other_settings(out, engine.settings(), settings)
    combined = ""  # the mark of an earlier coco.json
    if planned:
        known = engine.stats()
        earlier = earlier_marks(planned, known)
        combined = mark_of(_in(out, COCO), known) if "coco" in asked else ""
        settings["weights_sha256"] = weights_sha256(arguments)
        jobs = planned = marked(planned, settings, known)
        if not arguments.overwrite:
            outcome.kept = [result(job) for job, mark in zip(planned, earlier, strict=True) if mark == job.mark]
            jobs = [job for job, mark in zip(planned, earlier, strict=True) if mark != job.mark]
    where = f"results in {out}"
    left = "coco" in asked and planned and combined != _combined(planned)
    if jobs or left:
        engine.begin(json.dumps(settings, indent=2) + "\n")
    try:
        if jobs:
            where += engine.predict(jobs, outcome)
        if "coco" in asked and isinstance(engine, Local):
            failed = {str(each.image) for each in outcome.failed}
            done = [job for job in planned if job.image not in failed]
            if done and combined != _combined(done):
                engine.write_coco(done, _combined(done))
    finally:  # what was done before an interruption as well
        outcome.tell(arguments.json, where)
    return 1 if outcome.failed else 0


def _kinds(arguments: argparse.Namespace) -> tuple[str, ...]:
    """What is asked for; COCO's file is made of the masks, which are then written as well."""
    return kinds_of(arguments, [*ENDINGS, "coco"], ["overlay", "mask"])


def _own_files(arguments: argparse.Namespace, out: str, asked: Sequence[str]) -> list[str]:
    """What the run writes for all images together."""
    own = [_in(out, SETTINGS)] + [_in(out, COCO)] * ("coco" in asked)
    if arguments.json not in (None, "-"):
        report = str(Path(arguments.json))
        if report in own:
            raise OptionError(f"--json {report} is where predict writes COCO's annotations; choose another name")
        own.append(report)
    return own


def _in(out: str, name: str) -> str:
    return f"{out}/{name}" if is_url(out) else str(Path(out, name))


def _combined(jobs: Sequence[Job]) -> str:
    """The mark of what is made of all of them."""
    text = json.dumps([(job.target, job.mark) for job in jobs])
    return hashlib.sha256(text.encode("ascii")).hexdigest()


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
        if "coco" in _kinds(arguments):
            raise OptionError("--save coco reads all masks in this process when they are done; leave out --engine ray")
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
        work = work_of(self.arguments, jobs[0].kinds, device_of(self.arguments))
        flat = [job for job in jobs if not job.is_on_a_map]
        if flat:
            reasons = work.run(flat, self.model, Path, _write)
            # disable=None: a bar on a terminal only
            for job, reason in zip(flat, tqdm(reasons, total=len(flat), unit="image", disable=None), strict=True):
                note(job, reason, outcome)
        for job in jobs:
            if job.is_on_a_map:
                note(job, aerial.run(work, job, self.model, _write), outcome)
        return ""

    def write_coco(self, jobs: list[Job], mark: str) -> None:
        """One file of the masks of these jobs, which are done."""
        masks = (
            ((Path(job.target).relative_to(self.out).parent / Path(job.image).name).as_posix(), job.files["mask"])
            for job in jobs
        )
        with whole(self.out / COCO) as part, part.open("wb") as file:
            write_coco(file, mark, masks, self.model.classes, self.model.palette)


def _write(data: bytes, address: str) -> None:
    with whole(Path(address)) as part:
        part.write_bytes(data)
