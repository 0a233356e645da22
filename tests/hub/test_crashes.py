"""Processes that are killed, disks that are full, caches that go away: never a wrong file, at most a repeated download.

The rows go into `docs/reliability.md`: `python -m pytest tests/hub/test_crashes.py --write-reliability` writes them.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from conftest import Zoo
from helpers.processes import die_before_step, start
from helpers.records import ID, LINK, record
from helpers.reliability import Reliability
from helpers.servers import Server, serve, zip_payload

from zoo_seg import create_model, settings
from zoo_seg.errors import DownloadError, HashMismatchError
from zoo_seg.hub import cache, files
from zoo_seg.hub.files import hash_file
from zoo_seg.manifest import File, get_weights
from zoo_seg.pretrained import load_checkpoint

if sys.platform == "win32":
    pytest.skip("Windows has neither signals nor fork", allow_module_level=True)
import fcntl
import resource

pytestmark = pytest.mark.slow

BODY, OTHER = zip_payload(300_000), zip_payload(300_000, seed=1)
SHA256 = hashlib.sha256(BODY).hexdigest()
PUBLISHED, UNPUBLISHED = record(File(LINK, size=len(BODY), sha256=SHA256)), record(File(LINK))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The mirror; it serves `w.pth`. Nothing else can be reached."""
    with Server() as server:
        server.files["w.pth"] = BODY
        monkeypatch.setattr(requests, "get", server.reach)
        monkeypatch.setenv("ZOO_SEG_MIRROR", server.base)
        yield server


@pytest.fixture
def toys(zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """It serves the toy network too."""
    server.files["toys.pth"] = (zoo.mirror / "toys.pth").read_bytes()
    monkeypatch.setenv("ZOO_SEG_MIRROR", server.base)
    return server


@pytest.fixture
def path(home: Path) -> Path:
    return home / "weights" / ID / "w.pth"


def fetch() -> Path:
    return cache.fetch(PUBLISHED, progress=False).path


def export() -> Path:
    return cache.export(PUBLISHED, settings.home() / "mirror", progress=False)


def load() -> Path:
    """The network's values must be right; what is returned is the published file's path."""
    checkpoint = load_checkpoint("toy_r50", "toys", progress=False)
    path = settings.home() / "weights" / "toy_r50.toys_me" / "toys.pth"
    values = torch.load(path, weights_only=True)["model"]
    assert checkpoint.tensors.keys() == values.keys()
    assert all(torch.equal(checkpoint.tensors[name], value) for name, value in values.items())
    return path


def names(folder: Path) -> list[str]:
    return sorted(re.sub("[0-9a-f]{12}", "#", path.name) for path in folder.iterdir())


# --- kill -9 ------------------------------------------------------------------------------------


def half_a_download(home: Path) -> None:
    """What a killed process left."""
    log = home.with_suffix(".prepared")
    start(die_before_step, 13, log, fetch).join()
    assert log.read_text().splitlines()[-1].startswith("zoo_seg.append")
    assert names(home / "weights" / ID) == [".lock", "w.pth.#.part", "w.pth.#.part.json"]


def a_damaged_file(home: Path) -> None:
    path = fetch()
    path.write_bytes(OTHER)
    os.utime(path, (0, 0))


def a_network_without_copy(home: Path) -> None:
    cache.fetch(get_weights("toy_r50", "toys"), progress=False)


def nothing(home: Path) -> None:
    pass


def stage(step: str, converting: bool) -> str:
    """What was going on, by a line of the log."""
    event, _, place = step.partition(" ")
    name = Path(place).name
    if ".safetensors.json" in name:
        return "writing the record of the safetensors copy"
    if ".safetensors" in name:
        return "converting to the safetensors copy"
    if re.search(r"\.pth\.json|SHA256SUMS", name):
        return "writing its record"
    if not name.endswith((".part", ".part.json")):
        return "taking the lock" if converting else "making folders, locks and tags"
    return "giving the whole file its name" if event == "os.rename" else "downloading"


@pytest.mark.parametrize(
    ("name", "prepare", "work"),
    [
        (None, nothing, fetch),
        (None, a_network_without_copy, load),
        ("going on with half a download", half_a_download, fetch),
        ("fetching again what is damaged", a_damaged_file, fetch),
        ("exporting to a folder", nothing, export),
    ],
    ids=["fetch", "convert", "resume", "repair", "export"],
)
def test_killed_before_every_step(
    name: str | None,
    prepare: Callable[[Path], None],
    work: Callable[[], Path],
    toys: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reliability: Reliability,
) -> None:
    """Then there is the right file or none, and the next call in the same cache gets it, leaving nothing else there."""
    outcomes = defaultdict[str, list[tuple[str, int]]](list)
    template = tmp_path / "template"
    monkeypatch.setenv("ZOO_SEG_HOME", str(template))
    template.mkdir()
    prepare(template)
    for number in itertools.count(1):
        home, log = tmp_path / str(number), tmp_path / f"{number}.log"
        shutil.copytree(template, home)
        monkeypatch.setenv("ZOO_SEG_HOME", str(home))
        process = start(die_before_step, number, log, work)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        left = {hash_file(path) for path in home.rglob("*.pth")}
        asked = len(toys.asked)
        path = work()
        file = toys.files[path.name]
        assert path.read_bytes() == file
        assert left <= {hash_file(path), hashlib.sha256(OTHER).hexdigest()}
        again = sum(len(file) - request.start for request in toys.asked[asked:])
        assert again <= len(file)
        assert sum(left.stat().st_size for left in path.parent.glob("*.part*")) < 500  # an orphaned note or record
        state = "the right file" if hash_file(path) in left else "the damaged file" if left else "no file"
        outcomes[name or stage(log.read_text().splitlines()[-1], work is load)].append(
            (state, 100 * again // len(file))
        )
        shutil.rmtree(home)
    assert number > 10
    for killed, results in outcomes.items():
        states = " or ".join(sorted({state for state, _ in results}))
        figures = len(results), f"{max(again for _, again in results)} %"
        reliability.row("kills", killed, states, "the right file", figures=figures)


# --- disks --------------------------------------------------------------------------------------

SMALL_DISK = """
import json, os, subprocess, sys, torch
from pathlib import Path
from zoo_seg import create_model
from zoo_seg.errors import DownloadError

cache, size = Path(sys.argv[1]), int(sys.argv[2])

def leave(free):
    (cache / "filler").unlink(missing_ok=True)
    status = os.statvfs(cache)
    (cache / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize - free))

def load(tag="toys"):
    try:
        model = create_model("toy_r50", tag, progress=False)
        done = "network" if torch.isfinite(model(torch.zeros(1, 3, 64, 64))).all() else "broken network"
    except DownloadError as error:
        done = str(error)
    print(json.dumps([done, sorted(path.suffix for path in cache.glob("weights/*/*"))]))

for free in (size // 2, size + 32768, 1 << 22):
    leave(free)
    load()
next(cache.rglob("*.safetensors")).unlink()
subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
load()
load("games")
"""
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


def test_a_disk_that_is_full_and_then_read_only(toys: Server, home: Path, reliability: Reliability) -> None:
    """A small one, mounted where no other process sees it, which needs no privileges."""
    if not shutil.which("unshare") or subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process have mounts of its own")
    mount = 'mount -t tmpfs -o size=8m none "$3" && exec "$0" "$@"'
    size = len(toys.files["toys.pth"])
    command = [*OWN_MOUNTS, "sh", "-ec", mount, sys.executable, "-c", SMALL_DISK, str(home), str(size)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    full, narrow, wide, cached, missing = map(json.loads, child.stdout.splitlines())

    says = (
        r"the disk is full: toys.pth needs \d+ more bytes in .*; free some, or set ZOO_SEG_HOME to a folder on another"
    )
    assert re.match(says, full[0])
    assert full[1] == [""]  # the lock; what was written is gone, and its space free again
    assert narrow == ["network", ["", ".json", ".pth"]]
    assert wide == ["network", ["", ".json", ".json", ".pth", ".safetensors"]]
    assert cached == ["network", ["", ".json", ".json", ".pth"]]
    assert re.match(r"cannot write in .*Read-only file system.*ZOO_SEG_HOME", missing[0])
    for name, *cells in (
        ("the disk is full before the file is whole", "no file", "once there is space", "the disk is full"),
        ("the disk is full before the safetensors copy is whole", "the right file", "at once", "-"),
        ("a read-only cache with the file", "the right file", "at once", "-"),
        ("a read-only cache without the file", "no file", "in another cache", "cannot write"),
    ):
        reliability.row("crashes", name, *cells)


def test_a_disk_too_full_for_the_record(
    server: Server,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reliability: Reliability,
) -> None:
    with monkeypatch.context() as patch:
        write = Path.write_text

        def full(self: Path, text: str, *arguments: Any, **options: Any) -> int:
            if ".pth.json." in self.name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, text, *arguments, **options)

        patch.setattr(Path, "write_text", full)
        assert fetch().read_bytes() == BODY
        assert "no record of it could be written" in caplog.text
        assert fetch().read_bytes() == BODY
    assert names(path.parent) == [".lock", "w.pth"]
    assert fetch() == path
    assert len(server.asked) == 1
    reliability.row(
        "crashes", "the disk is full before the record is written", "the right file", "at once", "no record"
    )


def limited(size: int, result: Path) -> None:
    """What a quota does: this process may not write larger files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        fetch()
    except DownloadError as error:
        os.write(os.open(result, os.O_WRONLY | os.O_CREAT), str(error).encode())


def test_a_limit_on_the_size_of_files(server: Server, path: Path, tmp_path: Path, reliability: Reliability) -> None:
    start(limited, len(BODY) // 2, tmp_path / "result").join(60)
    assert re.match(r"cannot write in .*File too large.*ZOO_SEG_HOME", (tmp_path / "result").read_text())
    assert names(path.parent) == [".lock"]
    assert fetch().read_bytes() == BODY
    reliability.row("crashes", "a limit on the size of files", "no file", "once it is lifted", "cannot write")


# --- the cache goes away ------------------------------------------------------------------------


def removing(home: Path) -> Any:
    """Serve half of the file, remove the cache, and serve the rest."""

    def step(handler: Any, body: bytes) -> None:
        handler.answer(200, {"Content-Length": str(len(body)), "ETag": '"v1"'}, body[: len(body) // 2])
        handler.wfile.flush()
        deadline = time.monotonic() + 10
        while not list(home.glob("weights/*/*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        shutil.rmtree(home)
        handler.write(body[len(body) // 2 :])

    return step


def test_a_cache_removed_while_downloading(server: Server, home: Path, path: Path, reliability: Reliability) -> None:
    server.plan["w.pth"] = [removing(home)]
    assert fetch().read_bytes() == BODY
    assert len(server.asked) == 2
    assert cache.check(path) == SHA256
    server.plan["w.pth"] = [removing(home), removing(home)]
    shutil.rmtree(home)
    with pytest.raises(DownloadError, match=r"cannot write in .*No such file"):
        fetch()
    assert not path.exists()
    reliability.row("crashes", "the cache is removed while downloading", "the right file", "at once", "fetched again")


def test_a_cache_removed_while_in_use(toys: Server, home: Path, reliability: Reliability) -> None:
    image = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        load()
        model = create_model("toy_r50", "toys", progress=False)  # maps the copy
        expected = model(image)
        shutil.rmtree(home)
        assert torch.equal(model(image), expected)
        assert torch.equal(create_model("toy_r50", "toys", progress=False)(image), expected)
    assert len(toys.asked) == 2
    reliability.row("crashes", "the cache is removed while a network is in use", "the right file", "at once", "-")


# --- clocks -------------------------------------------------------------------------------------


def test_a_clock_that_jumps(
    server: Server, home: Path, path: Path, monkeypatch: pytest.MonkeyPatch, reliability: Reliability
) -> None:
    """Nothing is older or younger than anything else: times are only compared for being the same."""
    jumps = itertools.cycle([0.0, 4e9, 1e9, 86400.0])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    half_a_download(home)
    for part in path.parent.glob("*.part*"):
        os.utime(part, (4e9, 4e9))
    assert fetch().read_bytes() == BODY
    assert server.asked[-1].start > 0
    assert len(server.asked) == 2
    for moment in (0, 1, 4e9):
        os.utime(path, (moment, moment))
        os.utime(f"{path}.json", (moment, moment))
        assert fetch().read_bytes() == BODY
    path.write_bytes(OTHER)
    os.utime(path, (1e9, 1e9))
    assert fetch().read_bytes() == BODY
    assert len(server.asked) == 3
    reliability.row("crashes", "a clock that jumps between 1970 and 2096", "the right file", "at once", "-")


# --- two versions of this library ---------------------------------------------------------------


def test_records_of_other_versions(server: Server, path: Path, reliability: Reliability) -> None:
    """Unknown keys do no harm, missing ones neither, and what was seen first is still what later bytes are held to."""
    record_path = Path(f"{path}.json")
    for change in (
        lambda known: {"format": 7, **known, "signature": ["x"]},
        lambda known: {name: known[name] for name in ("size", "mtime_ns", "sha256")},
    ):
        cache.fetch(UNPUBLISHED)
        record_path.write_text(json.dumps(change(json.loads(record_path.read_text()))))
        asked = len(server.asked)
        assert cache.fetch(UNPUBLISHED).sha256 == SHA256
        assert len(server.asked) == asked
        path.write_bytes(OTHER)
        server.plan["w.pth"] = [serve(other=OTHER)]
        with pytest.raises(HashMismatchError, match="that of the first download"):
            cache.fetch(UNPUBLISHED)
    reliability.row("crashes", "a record written by another version", "the right file", "at once", "-")


def test_half_a_download_of_another_version(server: Server, home: Path, path: Path) -> None:
    half_a_download(home)
    (note,) = path.parent.glob("*.part.json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "mirror": 1}))
    assert fetch().read_bytes() == BODY
    assert names(path.parent) == [".lock", "w.pth", "w.pth.json"]


def take_turns(naming: str, times: int) -> None:
    from zoo_seg import pretrained as module

    module._NAMING = naming
    for _ in range(times):
        load()


def test_two_namings_at_once(toys: Server, reliability: Reliability) -> None:
    """Each version makes the copy anew, under the other's eyes; neither ever sees the other's names."""
    load()
    processes = [start(take_turns, naming, 5) for naming in ("2", "3", "2")]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 3
    assert len(toys.asked) == 1
    reliability.row(
        "crashes", "two versions that name parameters differently, at once", "the right file", "at once", "-"
    )


# --- locks --------------------------------------------------------------------------------------


def without_locks(number: int) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    fcntl.flock = flock
    files.WAIT = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fetch()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks(server: Server, path: Path, number: int, reliability: Reliability) -> None:
    """All fetch, each for itself; a marker that a process on another machine left for ever is not waited for."""
    path.parent.mkdir(parents=True)
    (path.parent / ".lock").write_text("1234\nanother-machine\n")
    processes = [start(without_locks, number) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert fetch().read_bytes() == BODY
    assert 1 <= len(server.asked) <= 4
    assert not list(path.parent.glob("*.part*"))
    name = f"a file system without locks ({errno.errorcode[number]}), 4 processes"
    reliability.row("crashes", name, "the right file", "at once", "-")


def test_a_lock_whose_holder_is_stuck(
    server: Server,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reliability: Reliability,
) -> None:
    """A stopped process (Ctrl-Z, a debugger, a suspended notebook) does not stop the others for good."""
    monkeypatch.setattr(files, "WAIT", 0.05)
    monkeypatch.setattr(files, "STUCK", 0.3)
    server.plan["w.pth"] = [serve(stop=len(BODY) // 2, how="stall")]
    process = start(fetch)
    deadline = time.monotonic() + 60
    while not [part for part in path.parent.glob("*.part") if part.stat().st_size]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    assert fetch().read_bytes() == BODY
    assert "has done nothing for" in caplog.text
    server.release.set()
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0
    assert path.read_bytes() == BODY
    assert not list(path.parent.glob("*.part*"))
    reliability.row("crashes", "the holder of the lock is stopped", "the right file", "after 10 minutes", "a warning")
