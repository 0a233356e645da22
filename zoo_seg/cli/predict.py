"""`zoo-seg predict`"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zoo_seg.cli.network import check_looks, device_of, load_predicting
from zoo_seg.cli.pictures import SETTINGS, is_clip, pictures, trouble
from zoo_seg.cli.report import Failure, Report, Result
from zoo_seg.errors import ImageError, OptionError
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.predictor import in_order
from zoo_seg.inference.segmentation import Segmentation, write_png


@dataclass(frozen=True)
class _Job:
    """A picture and the files to write for it."""

    picture: Path
    mask: Path
    overlay: Path | None

    def is_done(self) -> bool:
        """The results are there and newer than the picture."""
        try:
            time = self.picture.stat().st_mtime
            return all(path.stat().st_mtime >= time for path in (self.mask, self.overlay) if path is not None)
        except OSError:
            return False

    def result(self) -> Result:
        """For the report."""
        overlay = None if self.overlay is None else str(self.overlay)
        return {"picture": str(self.picture), "mask": str(self.mask), "overlay": overlay}


def run(arguments: argparse.Namespace) -> int:
    """Predict every picture; go on past a broken one, name it at the end and return 1."""
    _check_options(arguments)
    out = Path(arguments.out)
    if any(is_clip(Path(path)) for path in (*arguments.paths, out)):
        from zoo_seg.cli import clip  # needs an extra

        return clip.run(arguments)
    report = Report()
    jobs = list(_plan(arguments.paths, out, not arguments.no_overlay, report))
    settings = {name: value for name, value in vars(arguments).items() if name not in _NOT_SETTINGS}
    if not arguments.overwrite:
        _refuse_other_results(out, settings, jobs)
        report.kept = [job.result() for job in jobs if job.is_done()]
        jobs = [job for job in jobs if not job.is_done()]
    model = load_predicting(arguments) if jobs else None
    try:
        if model is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            _predict(model, jobs, arguments, report)
    finally:  # what was done before an interruption as well
        report.tell(arguments.json, f"results in {out}")
    return 1 if report.failed else 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is fetched or loaded."""
    out = Path(arguments.out)
    if out.exists() and not out.is_dir() and not is_clip(out):
        raise OptionError(f"--out {out} is a file; expected a folder")
    if not 0 <= arguments.alpha <= 1:
        raise OptionError(f"--alpha is {arguments.alpha}; expected a number from 0 to 1")
    if arguments.json not in (None, "-"):
        path = Path(arguments.json)
        if path.suffix.lower() != ".json":  # a picture that was meant as a PATH must not be overwritten
            raise OptionError(f"--json {path}; expected a file that ends in .json, or - for stdout")
        path.parent.mkdir(parents=True, exist_ok=True)
    check_looks(arguments.mode, arguments.scales, arguments.flip, arguments)


def _plan(paths: Sequence[str], out: Path, overlay: bool, report: Report) -> Iterator[_Job]:
    """A job for every picture; two that would write the same files: the second one fails."""
    taken: dict[Path, Path] = {}

    def fail(path: Path, reason: str) -> None:
        report.failed.append(Failure(path, reason))

    for picture, folder in pictures(paths, fail):
        if reason := trouble(picture):  # known before any weights are fetched
            fail(picture, reason)
            continue
        target = out / folder / picture.stem
        mask = target.with_name(f"{target.name}_mask.png")
        if taken.setdefault(mask, picture) == picture:
            yield _Job(picture, mask, target.with_name(f"{target.name}_overlay.png") if overlay else None)
        else:
            fail(picture, f"would overwrite the result of {taken[mask]} ({mask}); give it another --out")


_NOT_SETTINGS = {"verb", "paths", "out", "overwrite", "device", "batch_size", "json"}
"""Arguments that do not change what is written for a picture."""


def _refuse_other_results(out: Path, settings: dict[str, Any], jobs: Sequence[_Job]) -> None:
    """Results of other settings in the same folder would be taken for this run's; other files are not ours to lose."""
    try:
        before = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        for path in (path for job in jobs for path in (job.mask, job.overlay) if path is not None):
            if path.exists():
                raise OptionError(f"{path} was not written by zoo-seg; choose another --out, or add --overwrite")
        return
    different = [name for name in settings if before.get(name) != settings[name]]
    if different:
        what = ", ".join(f"{name} {before.get(name)!r} (now {settings[name]!r})" for name in different)
        raise OptionError(f"{out} holds results made with {what}; choose another --out, or add --overwrite")


def _predict(model: Predicting, jobs: list[_Job], arguments: argparse.Namespace, report: Report) -> None:
    """Reading, the network and writing at the same time; few pictures are held, however many there are."""

    def write(item: tuple[_Job, Segmentation | ImageError]) -> Failure | Result:
        job, result = item
        if isinstance(result, ImageError):
            return Failure.of(job.picture, str(result))
        try:
            _write(job, result, arguments.alpha, arguments.legend)
        except OSError as error:
            return Failure(job.picture, f"its results cannot be written ({error.strerror or error}): {job.mask.parent}")
        return job.result()

    batch_size = arguments.batch_size or 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files; what cannot be read is a failure
        results = model.stream(
            [job.picture for job in jobs],
            mode=arguments.mode,
            crop=arguments.crop,
            stride=arguments.stride,
            scales=arguments.scales,
            flip=arguments.flip,
            resize=arguments.resize,
            batch_size=batch_size,
            device=device_of(arguments),
            dtype=arguments.dtype,
            compile=arguments.compile,
            on_error="yield",
        )
        written = in_order(zip(jobs, results, strict=True), write, ahead=2 * batch_size)
        # disable=None: a bar on a terminal only
        for each in tqdm(written, total=len(jobs), unit="picture", disable=None):
            if isinstance(each, Failure):
                report.failed.append(each)
            else:
                report.done.append(each)


def _write(job: _Job, result: Segmentation, alpha: float, legend: bool) -> None:
    """The overlay first: a mask means that the picture is done."""
    if job.overlay is not None:
        write_png(result.overlay(alpha, legend=legend), job.overlay, compress_level=1)
    result.save(job.mask)
