"""`zoo-seg predict`"""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from zoo_seg.cli.network import check_looks, device_of, load_network
from zoo_seg.errors import ImageError, OptionError
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.model import SegmentationModel

_SETTINGS = "zoo_seg_predict.json"
"""Written beside the results: what made them, so that a second run goes on with its own work only."""


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


@dataclass
class _Report:
    """What became of every picture."""

    done: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)
    """A message for each, which names the picture."""


def run(arguments: argparse.Namespace) -> int:
    """Predict every picture; go on past a broken one, name it at the end and return 1."""
    _check_options(arguments)
    report = _Report()
    out = Path(arguments.out)
    jobs = list(_plan(arguments.paths, out, not arguments.no_overlay, report))
    settings = {name: value for name, value in vars(arguments).items() if name not in _NOT_SETTINGS}
    if not arguments.overwrite:
        _refuse_other_results(out, settings, jobs)
        report.kept = sum(job.is_done() for job in jobs)
        jobs = [job for job in jobs if not job.is_done()]
    if jobs:
        model = load_network(arguments)
        out.mkdir(parents=True, exist_ok=True)
        (out / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        _predict(model, jobs, arguments, report)
    for message in report.failures:
        print(f"zoo-seg: {message}", file=sys.stderr)
    counts = [(report.done, "done"), (report.kept, "already there"), (len(report.failures), "failed")]
    print(", ".join(f"{count} {what}" for count, what in counts if count) + f"; results in {out}")
    return 1 if report.failures else 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is fetched or loaded."""
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is a file; expected a folder")
    if not 0 <= arguments.alpha <= 1:
        raise OptionError(f"--alpha is {arguments.alpha}; expected a number from 0 to 1")
    check_looks(arguments.mode, arguments.scales, arguments.flip, arguments)


# --- which pictures -----------------------------------------------------------------------------


def _plan(paths: Sequence[str], out: Path, overlay: bool, report: _Report) -> Iterator[_Job]:
    """A job for every picture; two that would write the same files: the second one fails."""
    taken: dict[Path, Path] = {}
    for picture, folder in _pictures(paths):
        if not picture.exists():  # known before any weights are fetched
            report.failures.append(f"{picture}: there is no such file; check the path")
            continue
        target = out / folder / picture.stem
        mask = target.with_name(f"{target.name}_mask.png")
        if taken.setdefault(mask, picture) == picture:
            yield _Job(picture, mask, target.with_name(f"{target.name}_overlay.png") if overlay else None)
        else:
            report.failures.append(
                f"{picture}: would overwrite the result of {taken[mask]} ({mask}); give it another --out"
            )


def _pictures(paths: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """Every picture with the folder it lies in, relative to the folder that was named; each once."""
    seen: set[Path] = set()
    for text in paths:
        named = Path(text)
        if named.is_dir():
            found = [(each, each.relative_to(named).parent) for each in _walk(named)]
            if not found:
                raise OptionError(f"{named} holds no pictures ({', '.join(sorted(_suffixes()))})")
        elif named.exists() or not glob.has_magic(text):
            found = [(named, Path())]
        else:
            root = _fixed_part(text)
            matches = sorted(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207  (absolute ones too)
            matches = [each for each in matches if each.is_file() and not _is_result(each)]
            found = [(each, each.relative_to(root).parent) for each in matches]
            if not found:
                raise OptionError(f"no file matches {text!r}")
        for each, folder in found:
            if each not in seen:
                seen.add(each)
                yield each, folder


def _walk(folder: Path) -> list[Path]:
    suffixes = _suffixes()
    return sorted(
        each
        for each in folder.rglob("*")
        if each.suffix.lower() in suffixes and each.is_file() and not _is_result(each)
    )


def _is_result(path: Path) -> bool:
    """Written by an earlier run: a second one must not predict the first one's results."""
    if not path.name.endswith(("_mask.png", "_overlay.png")):
        return False
    return any((folder / _SETTINGS).is_file() for folder in path.absolute().parents)


def _suffixes() -> set[str]:
    """The file endings that Pillow reads as pictures."""
    extensions = Image.registered_extensions()
    return {suffix for suffix, kind in extensions.items() if kind in Image.OPEN and kind not in ("PDF", "MPEG", "HDF5")}


def _fixed_part(pattern: str) -> Path:
    """The folders of a glob in front of its first wildcard."""
    parts = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


# --- with which network -------------------------------------------------------------------------

_NOT_SETTINGS = {"verb", "paths", "out", "overwrite", "device", "batch_size"}
"""Arguments that do not change what is written for a picture."""


def _refuse_other_results(out: Path, settings: dict[str, Any], jobs: Sequence[_Job]) -> None:
    """Results of other settings in the same folder would be taken for this run's; other files are not ours to lose."""
    try:
        before = json.loads((out / _SETTINGS).read_text(encoding="utf-8"))
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


def _predict(model: SegmentationModel, jobs: list[_Job], arguments: argparse.Namespace, report: _Report) -> None:
    results = model.stream(
        [job.picture for job in jobs],
        mode=arguments.mode,
        crop=arguments.crop,
        stride=arguments.stride,
        scales=arguments.scales,
        flip=arguments.flip,
        resize=arguments.resize,
        batch_size=arguments.batch_size,
        device=device_of(arguments),
        dtype=arguments.dtype,
        compile=arguments.compile,
        on_error="yield",
    )
    # disable=None: a bar on a terminal only
    for job, result in tqdm(zip(jobs, results, strict=True), total=len(jobs), unit="picture", disable=None):
        if isinstance(result, ImageError):
            report.failures.append(str(result))
            continue
        _write(job, result, arguments.alpha, arguments.legend)
        report.done += 1


def _write(job: _Job, result: Segmentation, alpha: float, legend: bool) -> None:
    """The overlay first: a mask means that the picture is done."""
    job.mask.parent.mkdir(parents=True, exist_ok=True)
    if job.overlay is not None:
        part = job.overlay.with_name(f".{job.overlay.name}.part")
        result.overlay(alpha, legend=legend).save(part, format="PNG", compress_level=1)
        part.replace(job.overlay)
    result.save(job.mask)
