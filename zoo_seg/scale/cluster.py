"""The images of a run shared out to the workers of a Ray cluster, by Ray Data."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo_seg import settings
from zoo_seg.errors import MissingExtraError, OptionError, OutOfMemoryError, ScaleError
from zoo_seg.inference.predicting import Predicting
from zoo_seg.scale.jobs import Job, Work
from zoo_seg.scale.places import is_url, opens, write_file

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # this library reports to nobody
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

try:
    import pyarrow
    import ray
    import ray.data
except ImportError as error:
    raise MissingExtraError(f"--engine ray needs more ({error}); pip install 'zoo_seg[scale]'") from None

_THREADS = 4
"""Of a worker on a CPU: more threads gain ever less, more workers take more memory."""
_MOST_ROWS = 64
"""Images that a worker is given at a time, which are done again if it is lost."""
_MOST_LOSSES = 2
"""An image that was the only one at hand as often when a worker was lost is given up."""


@dataclass(frozen=True)
class Share:
    """How the cluster's machines are used."""

    workers: int
    threads: int
    """Of each worker."""
    device: str
    """`"cpu"`, or `"cuda"`: a GPU for each worker."""


@contextmanager
def cluster(address: str | None, cores: int | None = None) -> Iterator[None]:
    """A Ray cluster: the running one of this process or at an address, else one of this machine that ends with it.

    Ray says nothing on the terminal meanwhile.

    Args:
        cores: of a cluster of this machine; None: all.

    Raises:
        ScaleError: there is no cluster at the address, or none can be started.
    """
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # where Ray tells of a lost worker
        if ray.is_initialized():
            yield
            return
        # Sockets lie in it, whose paths may have 107 letters: a long TMPDIR leaves too few.
        folder = tempfile.mkdtemp(prefix="zoo_seg-", dir="/tmp" if os.name == "posix" else None)
        try:
            _start(address or os.environ.get("RAY_ADDRESS") or "local", cores, folder)
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def check_reachable(address: str | None) -> None:
    """Ray itself would try for a minute.

    Raises:
        ScaleError: nobody answers at the address.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from None


def _start(address: str, cores: int | None, folder: str) -> None:
    own = {"include_dashboard": False, "num_cpus": cores, "_temp_dir": folder}
    how: dict[str, Any] = own if address == "local" else {}
    try:
        with _silent():
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **how)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str | None, error: Exception) -> ScaleError:
    return ScaleError(f"no Ray cluster at {address} ({_line(error)}); 'ray status' shows a running one")


@contextmanager
def _silent() -> Iterator[None]:
    """Ray's own core writes past Python."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def share(workers: int | None, device: str | None) -> Share:
    """How a cluster is used: by default a GPU for each worker, or four cores where there are none.

    Raises:
        OptionError: the cluster has fewer cores or GPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    machines = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    cores, gpus = (sum(column) for column in zip(*machines, strict=True))
    device = device or ("cuda" if gpus else "cpu")
    if device not in ("cpu", "cuda"):
        raise OptionError(f"--device {device}; a worker computes on cpu or on a GPU of its own: cuda")
    if workers is None:
        workers = gpus if device == "cuda" else sum(max(count // _THREADS, min(count, 1)) for count, _ in machines)

    def fit(threads: int) -> int:
        """So many workers."""
        return sum(min(count // threads, gpu if device == "cuda" else count) for count, gpu in machines)

    if not 1 <= workers <= fit(1):
        raise OptionError(
            f"{workers} workers on {device}: there are {gpus} GPUs and {cores} cores on {len(machines)} machines"
        )
    threads = max(each for each in range(1, cores + 1) if fit(each) >= workers)
    return Share(workers, threads, device)


def predict(
    jobs: Sequence[Job], model: Predicting, work: Work, how: Share, staging: str
) -> Iterator[tuple[Job, str | None]]:
    """Do the jobs on the cluster: each with the reason why it failed, or None, in the order in which they end.

    The network travels through the cluster's memory: a worker needs neither its file nor the internet. What a lost
    worker had in hand, another one does again.

    Args:
        staging: a folder beside the results for files that are being written.

    Raises:
        ScaleError: the workers cannot start, or the cluster is gone.
    """
    rows = max(work.options.get("batch_size", 1), min(_MOST_ROWS, len(jobs) // (8 * how.workers)))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    tables = [_table(jobs[first : first + rows], first) for first in range(0, len(jobs), rows)]
    ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()
    arguments = [[ray.put(model)], ledger, work, how.threads, staging, settings.max_pixels()]
    try:
        outcomes = ray.data.from_arrow(tables).map_batches(
            Worker,
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(how.workers, len(tables))),
            num_cpus=how.threads,
            num_gpus=1 if how.device == "cuda" else None,
        )
        batch: Any
        for batch in outcomes.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield jobs[row["number"]], _text(row["reason"])
    except ray.exceptions.RayError as error:
        raise ScaleError(
            f"the cluster's workers failed ({_line(error)}); what is written stays, the same command goes on from there"
        ) from None


class Worker:
    """A network of its own in a process of its own."""

    def __init__(
        self, model: list[Any], ledger: Any, work: Work, threads: int, staging: str, max_pixels: str | None
    ) -> None:
        torch.set_num_threads(threads)
        if max_pixels is not None:
            os.environ["ZOO_SEG_MAX_PIXELS"] = max_pixels
        self.model: Predicting = ray.get(model[0])
        self.ledger, self.work = ledger, work
        self.write = partial(write_file, staging=staging)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Rows of jobs -> their numbers, and the reason why each failed, or null."""
        rows = table.to_pylist()
        jobs = [
            Job(_text(row["image"]) or "", _text(row["target"]) or "", tuple(row["kinds"].split(",")), row["mark"])
            for row in rows
        ]
        numbers = [row["number"] for row in rows]
        if self._begin("block", numbers[0]):  # the worker before was lost: one of them may be the reason
            reasons = [self._alone(number, job) for number, job in zip(numbers, jobs, strict=True)]
        else:
            reasons = self._together(jobs)
        self._end("block", numbers[0])
        return pyarrow.table(
            {
                "number": pyarrow.array(numbers, pyarrow.int64()),
                "reason": pyarrow.array([_bytes(reason) for reason in reasons], pyarrow.binary()),
            }
        )

    def _together(self, jobs: list[Job]) -> list[str | None]:
        try:
            return list(self.work.run(jobs, self.model, opens, self.write))
        except Exception as error:
            if len(jobs) == 1:
                what = "" if isinstance(error, OutOfMemoryError) else f"unexpected {type(error).__name__}: "
                return [what + _line(error)]
        return [reason for job in jobs for reason in self._together([job])]

    def _alone(self, number: int, job: Job) -> str | None:
        reason: str | None
        losses = self._begin("image", number)
        if losses >= _MOST_LOSSES:
            reason = f"{losses} workers were lost while they were at it; is there enough memory for it?"
        else:
            (reason,) = self._together([job])
        self._end("image", number)
        return reason

    def _begin(self, *what: object) -> int:
        count: int = ray.get(self.ledger.begin.remote(what))
        return count

    def _end(self, *what: object) -> None:
        ray.get(self.ledger.end.remote(what))


class Ledger:
    """What the workers have in hand: who begins what has not ended takes over from a lost worker."""

    def __init__(self) -> None:
        self.begun: Counter[object] = Counter()

    def begin(self, what: object) -> int:
        """How often it was begun before."""
        self.begun[what] += 1
        return self.begun[what] - 1

    def end(self, what: object) -> None:
        del self.begun[what]


def _table(jobs: Sequence[Job], first: int) -> pyarrow.Table:
    """Jobs as rows; names are bytes, for a file may be called anything."""
    columns = {
        name: pyarrow.array([_bytes(_everywhere(getattr(job, name))) for job in jobs], pyarrow.binary())
        for name in ("image", "target")
    }
    columns["kinds"] = pyarrow.array([",".join(job.kinds) for job in jobs], pyarrow.string())
    columns["mark"] = pyarrow.array([job.mark for job in jobs], pyarrow.string())
    return pyarrow.table({"number": pyarrow.array(range(first, first + len(jobs)), pyarrow.int64()), **columns})


def _everywhere(address: str) -> str:
    """A worker stands in another folder."""
    return address if is_url(address) else os.path.abspath(address)  # noqa: PTH100


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogateescape")


def _line(error: BaseException) -> str:
    """The last line of a message, which names the cause; Ray's tracebacks stand before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
