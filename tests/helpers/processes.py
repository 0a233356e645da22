"""Processes that start in milliseconds, forked from one that has imported everything: to crash, and to make a crowd."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["filelock", "pytest", "records", "requests", "servers", "tqdm", "zoo_seg.factory"])


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """A process in the environment of this test, its cache among it."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("ZOO_SEG_")}
    process = CONTEXT.Process(target=_in_environment, args=(settings, target, arguments), daemon=True)
    process.start()
    return process


def _in_environment(settings: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    for name in [name for name in os.environ if name.startswith("ZOO_SEG_")]:
        del os.environ[name]
    os.environ.update(settings)
    target(*arguments)


def die_before_step(number: int, log: Path, work: Callable[[], object]) -> None:
    """Do some work, but be killed (SIGKILL) before the step of this number that would change a file in the cache.

    Steps are what Python tells an audit hook, each quarter of a download, and half a safetensors file. The log has a
    line for each.
    """
    from safetensors.torch import save_file

    from zoo_seg import pretrained as load
    from zoo_seg.hub import partial

    append, root, steps, quarters = partial.Partial.append, os.environ["ZOO_SEG_HOME"], 0, list[int]()
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in _CHANGES and str(arguments[0]).startswith(root) and _CHANGES[event](arguments):
            steps += 1
            os.write(lines, f"{event} {Path(arguments[0]).relative_to(root)}\n".encode())
            if steps == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched_append(self: partial.Partial, chunk: bytes) -> None:
        quarters.append(4 * self.size // self.limit)
        if quarters[-2:-1] != quarters[-1:]:
            sys.audit("zoo_seg.append", str(self.path))
        append(self, chunk)

    def watched_save(tensors: Any, path: Path, metadata: Any) -> None:
        save_file(tensors, path, metadata)
        os.truncate(path, path.stat().st_size // 2)
        sys.audit("zoo_seg.save", str(path))
        save_file(tensors, path, metadata)

    partial.Partial.append = watched_append  # type: ignore[method-assign]
    load.save_file = watched_save  # type: ignore[assignment, attr-defined]
    sys.addaudithook(hook)
    work()


_CHANGES: dict[str, Callable[[tuple[Any, ...]], object]] = {
    **dict.fromkeys(
        ("os.chmod", "os.remove", "os.rename", "os.rmdir", "os.truncate", "zoo_seg.append", "zoo_seg.save"),
        lambda arguments: Path(arguments[0]).exists(),
    ),
    "os.mkdir": lambda arguments: not Path(arguments[0]).exists(),
    "open": lambda arguments: arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT),
}


def together(work: Callable[[], object], threads: int, start: Any, results: Any) -> None:
    """Do the same in some threads of this process, at the moment when all processes are ready for it."""
    found: list[object] = []
    crowd = [threading.Thread(target=lambda: found.append(work())) for _ in range(threads)]
    start.wait(60)
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    results.put(found)
