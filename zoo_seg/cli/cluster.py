"""`zoo-seg predict --engine ray`; imported when it is asked for, for it needs an extra."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any, TypeVar

from tqdm import tqdm

from zoo_seg.cli.inputs import (
    LIST,
    SETTINGS,
    entries,
    images,
    is_named_like_result,
    is_wanted,
    suffixes,
    trouble,
    whole_name,
)
from zoo_seg.cli.network import check_test_arguments, load_predicting
from zoo_seg.cli.outcome import Outcome
from zoo_seg.cli.plan import note, work_of
from zoo_seg.errors import OptionError, ScaleError, ZooSegError
from zoo_seg.scale.cluster import check_reachable, cluster, predict, share
from zoo_seg.scale.jobs import Job
from zoo_seg.scale.places import Stats, below, is_url, place, read_text, remove, stats, write_text

T = TypeVar("T")

_SECONDS = 60
"""Between two lines about the progress where there is no terminal."""


class Ray:
    """The workers of a Ray cluster; images and results lie where all of them reach."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out: str = arguments.out.rstrip("/") if is_url(arguments.out) else str(Path(arguments.out))
        place(self.out)
        here = argparse.Namespace(**{**vars(arguments), "device": None})  # this machine need not have it
        check_test_arguments(here)

    def found(self, paths: Sequence[str], fail: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
        seen: set[str] = set()
        for path in paths:
            for image, name in _found(path, fail):
                if image not in seen:
                    seen.add(image)
                    try:
                        target = below(self.out, name)
                    except OptionError as error:
                        fail(image, str(error))
                    else:
                        yield image, target

    def stats(self) -> Stats:
        return _reached(self.out, stats)

    def settings(self) -> str | None:
        try:
            return read_text(f"{self.out}/{SETTINGS}")
        except (OSError, ValueError):
            return None

    def begin(self, settings: str) -> None:
        check_reachable(self.arguments.address)
        self.model = load_predicting(self.arguments)
        self.model.stream([], **work_of(self.arguments, (), "cpu").options)  # refuses what the network does not do
        try:
            write_text(settings, f"{self.out}/{SETTINGS}")
        except OSError as error:
            raise ScaleError(f"{self.out} cannot be written ({error.strerror or error}); check your access") from None

    def predict(self, jobs: list[Job], outcome: Outcome) -> str:
        arguments = self.arguments
        staging = f"{self.out}/.zoo_seg-{uuid.uuid4().hex}"
        with cluster(arguments.address):
            how = share(arguments.workers, arguments.device)
            begun = monotonic()
            try:
                outcomes = predict(jobs, self.model, work_of(arguments, jobs[0].kinds, how.device), how, staging)
                for job, reason in _with_progress(outcomes, len(jobs)):
                    note(job, reason, outcome)
            finally:
                remove(staging)
        rate = len(jobs) / (monotonic() - begun)
        return f"; {rate:.2f} images/s from {how.workers} workers ({how.device}, {how.threads} threads each)"


def _with_progress(outcomes: Iterator[tuple[Job, str | None]], total: int) -> Iterator[tuple[Job, str | None]]:
    """A bar with images per second and the time left; where there is no terminal a line every minute."""
    terminal = sys.stderr.isatty()
    how: dict[str, Any] = {} if terminal else {"mininterval": _SECONDS, "delay": _SECONDS, "ascii": True}
    yield from tqdm(outcomes, total=total, unit="image", **how)


# --- images anywhere ----------------------------------------------------------------------------


def _found(path: str, fail: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
    """Every image of a folder, URL, list or glob, and its name below the results: its folders and its stem."""
    if path.lower().endswith(LIST):
        yield from _listed(path, fail)
    elif is_url(path):
        for image, name in _reached(path, _below):
            if "::" in name and "::" not in path:
                fail(image, "has a '::' in its name, which fsspec takes for another storage; rename it")
            else:
                yield image, name
    else:
        for each, folder in images(path, lambda path, reason: fail(str(path), reason)):
            if reason := trouble(each):
                fail(str(each), reason)
            else:
                yield str(each), str(folder / each.stem)


def _below(url: str) -> list[tuple[str, str]]:
    """The images of a folder elsewhere, as `images` finds them in one of this machine; or the one at the URL."""
    file_system, root = place(url)
    if not url.endswith("/") and file_system.isfile(root):
        return [(url, PurePosixPath(_path_of(url)).stem)]
    names = sorted(path.removeprefix(root).lstrip("/") for path in file_system.find(root))
    ours = {str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == SETTINGS}

    def is_result(name: str) -> bool:
        return is_named_like_result(name) and not ours.isdisjoint(map(str, PurePosixPath(name).parents))

    wanted = [name for name in names if is_wanted(name) and not is_result(name)]
    if not wanted:
        raise OptionError(f"{url} holds no images ({', '.join(sorted(suffixes()))}), or is not there")
    return [(f"{url.rstrip('/')}/{name}", _without_ending(name)) for name in wanted]


def _listed(path: str, fail: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
    """The images of a text file: a path or URL on each line; blank lines and those after a # are passed over."""
    text = _reached(path, read_text)
    try:
        named = entries(text)
    except ValueError as error:
        raise OptionError(f"{path} {error}") from None
    for entry in named:
        if not is_url(entry) and (reason := trouble(Path(entry))):
            fail(entry, reason)
        else:
            yield entry, _without_ending(_path_of(entry)) if is_url(entry) else whole_name(entry)


def _without_ending(name: str) -> str:
    """Empty where there is no name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.name else ""


def _path_of(url: str) -> str:
    """What follows the `://`; of a web address without its question."""
    protocol, _, path = url.partition("://")
    return path.partition("?")[0] if protocol in ("http", "https") else path.lstrip("/")


def _reached(url: str, ask: Callable[[str], T]) -> T:
    """What a storage answers.

    Raises:
        ScaleError: it does not.
    """
    try:
        return ask(url)
    except ZooSegError:
        raise
    except Exception as error:  # storages have exceptions of their own
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ScaleError(
            f"{url} cannot be read ({text or type(error).__name__}); check the name and your access"
        ) from None
