"""`zoo-seg predict --engine ray`: the images that one machine does, done by the workers of a cluster."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations
from helpers.cli import Result, Run
from helpers.drawn import draw_folder, picture
from PIL import Image

from zoo_seg.errors import OptionError
from zoo_seg.images.reading import read_image
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.scale import places
from zoo_seg.scale.marks import marked_png

ray: Any = pytest.importorskip("ray")
pytest.importorskip("pyarrow")

from zoo_seg.cli.cluster import Ray  # noqa: E402
from zoo_seg.scale import cluster  # noqa: E402
from zoo_seg.scale.jobs import Job, Work  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SETTINGS = "zoo_seg_predict.json"


@pytest.fixture
def predict(predict: Run) -> Run:
    """`zoo-seg predict`, without what it says of a slow minute's progress."""

    def quieter(*arguments: str | Path) -> Result:
        result = predict(*arguments)
        said = [
            line for line in result.err.splitlines(keepends=True) if "image/s]" not in line and "s/image]" not in line
        ]
        return replace(result, err="".join(said).replace("\r", ""))

    return quieter


@pytest.fixture(scope="module")
def two_cores() -> Iterator[list[str]]:
    """A cluster of this machine, and the options for a worker on each of its two cores."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # else the tests beside this one leave it no time
    with cluster.cluster(None, cores=2):
        yield ["--engine", "ray", "--workers", "2"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_gives_the_files_of_one_machine(predict: Run, two_cores: list[str], tmp_path: Path) -> None:
    names = ["a.png", "deep/ä é.jpg", "deep/er/日本.PNG", *(f"many/{number}.png" for number in range(20))]
    names += [os.fsdecode(b"\xff.png")] if sys.platform == "linux" else []  # no text at all
    for seed, name in enumerate(names):
        picture(Path("p") / name, seed)
    Path("p/broken.png").write_bytes(b"no image")
    picture(Path("p/a.jpg"))
    kinds = ["--save", "mask,overlay,confidence,geojson,labelme"]
    one = predict("p", "--out", "one", "--json", "one.json", *kinds)
    many = predict("p", "--out", "many", "--json", "many.json", *kinds, *two_cores)
    assert (one.code, many.code) == (1, 1)
    assert many.err == one.err.replace("one/", "many/")
    assert "broken.png: not an image" in many.err
    assert f"{len(names)} done, 2 failed; results in many; " in many.out
    assert many.out.endswith("images/s from 2 workers (cpu, 1 threads each)\n")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) == 5 * len(names) + 1
    told = [json.loads(Path(name).read_text().replace("many/", "one/")) for name in ("one.json", "many.json")]
    by_name = [{kind: sorted(rows, key=str) for kind, rows in each.items()} for each in told]
    assert by_name[0] == by_name[1]
    assert len(by_name[1]["done"]) == len(names)


def test_urls_and_lists_and_what_is_there_already(
    predict: Run, two_cores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(["p/a.png", "p/q/b.png", "p/.hidden/c.png", "l/d.png", "e.png"]):
        picture(Path(name), seed)
    Path("list.txt").write_text(f"# mine\nl/d.png\n\n  {tmp_path.as_uri()}/e.png\nl/d.png\nl/missing.png\n")
    out, mask = f"{tmp_path.as_uri()}/out", f"{str(tmp_path)[1:]}/e_mask.png"
    command = [f"{tmp_path.as_uri()}/p", "list.txt", "--out", out, "--no-overlay", *two_cores]
    result = predict(*command)
    assert result.code == 1
    assert result.err == "zoo-seg: l/missing.png: there is no such file; check the path\n"
    assert result.out.startswith(f"4 done, 1 failed; results in {out}; ")
    done = contents(tmp_path / "out")
    assert set(done) == {SETTINGS, "a_mask.png", "q/b_mask.png", "l/d_mask.png", mask}
    assert predict("e.png", "p", "--out", "one", "--no-overlay").code == 0
    assert done[mask] == Path("one/e_mask.png").read_bytes()
    assert done["q/b_mask.png"] == Path("one/q/b_mask.png").read_bytes()

    def no_network(arguments: Any) -> None:
        raise OptionError("something is left to do")

    monkeypatch.setattr("zoo_seg.cli.cluster.load_predicting", no_network)
    again = predict(*command)
    assert again.out == f"4 already there, 1 failed; results in {out}\n"
    assert predict(*command, "--flip").code == 2
    os.utime("p/q/b.png", (2**31, 2**31))
    assert "something is left to do" in predict(*command).err


def own_workers() -> list[int]:
    """The processes of the workers of the cluster that this process started."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
            if grandparent == os.getpid() and (each / "cmdline").read_text().startswith("ray::MapWorker"):
                found.append(int(each.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
def test_a_killed_worker_leaves_every_picture_done_once(predict: Run, two_cores: list[str], tmp_path: Path) -> None:
    count = 120
    for seed in range(count):
        picture(tmp_path / "p" / f"{seed}.png", seed)
    killed: list[tuple[int, int]] = []

    def kill_one() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and not killed:
            workers, done = own_workers(), len(list((tmp_path / "many").glob("*_mask.png")))
            if done and len(workers) == 2:
                os.kill(workers[0], signal.SIGKILL)
                killed.append((workers[0], done))
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = predict("p", "--out", "many", "--json", "-", *two_cores)
    killer.join()
    (victim, done_before) = killed[0]
    assert done_before < count
    assert not Path(f"/proc/{victim}").exists()
    assert result.code == 0
    assert f"{count} done; results in many; " in result.err
    told = json.loads(result.out)  # nothing of Ray's on stdout
    assert sorted(row["picture"] for row in told["done"]) == sorted(f"p/{number}.png" for number in range(count))
    assert predict("p", "--out", "one").code == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


class Deadly(Predicting):
    """A network that ends its process at an image of one pixel."""

    def stream(self, images: Any, **options: Any) -> Iterator[Any]:  # type: ignore[override]
        for image in images:
            rgb = read_image(image)
            if rgb.shape == (1, 1, 3):
                os.kill(os.getpid(), signal.SIGKILL)
            yield Segmentation(np.zeros(rgb.shape[:2], np.uint8), ("all",), ((0, 0, 0),), rgb)


def test_a_picture_that_takes_its_worker_along_is_given_up(two_cores: list[str], tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    jobs = []
    for number in range(16):
        path = picture(tmp_path / f"{number}.png")
        if number == 4:
            Image.new("RGB", (1, 1)).save(path)
        jobs.append(Job(str(path), str(tmp_path / str(number)), ("mask",)))
    work, staging = Work({}, 0.5, False), str(tmp_path / "staging")
    with cluster.cluster(None):
        outcomes = list(cluster.predict(jobs, Deadly(), work, cluster.share(1, "cpu"), staging))
    assert sorted(job.image for job, _ in outcomes) == sorted(job.image for job in jobs)
    reasons = {job: reason for job, reason in outcomes if reason}
    assert reasons == {jobs[4]: "2 workers were lost while they were at it; is there enough memory for it?"}
    assert [Path(job.files["mask"]).exists() for job in jobs] == [job != jobs[4] for job in jobs]


# --- training -----------------------------------------------------------------------------------


def test_two_processes_train_under_accelerate(tmp_path: Path) -> None:
    """As docs/scale.md has it; test_finetune.py has torchrun, and that two processes do what one does."""
    pytest.importorskip("accelerate")
    draw_folder(tmp_path / "data", train=4, val=2)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "-m", "zoo_seg", "finetune", "--device", "cpu"]
    options = "--model fcn --backbone mobilenetv3_small_050 --channels 8 --epochs 1 --batch-size 2 --workers 0"
    command = [*launch, *options.split(), "--crop-size", "32", "32", "--data", "data", "--out", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "1 epoch of 2 steps (2 processes, cpu, float32)" in result.stderr
    assert result.stdout.count("mIoU") == 1
    assert (tmp_path / "run" / "model.safetensors").is_file()


# --- without a cluster --------------------------------------------------------------------------

CARELESS: list[tuple[str, int, str]] = [
    # (what is typed in a folder with p/a.png and a few lists; the exit code; what is said)
    ("p --workers 2", 2, "--workers is for a cluster; add --engine ray"),
    ("p --address auto", 2, "--address is for a cluster; add --engine ray"),
    ("s3://bucket/p", 2, "s3://bucket/p is a URL, which the cluster's workers read and write; add --engine ray"),
    ("p --out s3://bucket/p", 2, "is a URL, which the cluster's workers read and write; add --engine ray"),
    ("clip.mp4 --engine ray", 2, "leave out --engine ray"),
    ("p --engine ray --workers 0", 2, "'0' is not a whole number of at least 1"),
    ("p --engine spark", 2, "invalid choice: 'spark'"),
    ("p --engine ray --alpha 2", 2, "from 0 to 1"),
    ("p --engine ray --scales 0", 2, "expected positive numbers"),
    ("p --engine ray --address 127.0.0.1:1", 1, "no Ray cluster at 127.0.0.1:1 ("),
    (
        "p --engine ray --out nots3://bucket/p",
        1,
        "nots3:// needs another package (Install nots3fs): pip install nots3fs",
    ),
    ("nots3://bucket/p --engine ray", 1, "nots3:// needs another package (Install nots3fs): pip install nots3fs"),
    ("nothing://bucket/p --engine ray", 2, "expected a path, or a URL that fsspec knows"),
    ("{here}/nothing --engine ray", 2, "/nothing holds no images"),
    ("{here}/empty --engine ray", 2, "/empty holds no images"),
    ("nothing.txt --engine ray", 1, "nothing.txt cannot be read (No such file or directory)"),
    ("empty.txt --engine ray", 2, "empty.txt names no images; expected a path or URL on each line"),
    ("binary.txt --engine ray", 2, "binary.txt is no text file"),
]


@pytest.mark.parametrize(("line", "code", "message"), CARELESS, ids=[line for line, _, _ in CARELESS])
def test_a_mistake_gets_one_message(
    line: str, code: int, message: str, predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"class": "nots3fs.FileSystem", "err": "Install nots3fs"}
    monkeypatch.setitem(known_implementations, "nots3", known)
    picture(Path("p/a.png"))
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n# nothing yet\n")
    Path("binary.txt").write_bytes(bytes(range(256)))
    result = predict(*line.format(here=tmp_path.as_uri()).split())
    assert result.code == code, result
    assert message in result.err
    assert result.err.count("\nzoo-seg") == 0
    assert result.out == ""
    assert not list(tmp_path.rglob("*_mask.png"))


def test_without_ray_the_message_names_the_command(predict: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(Path("p/a.png"))
    for module in ("zoo_seg.scale.cluster", "zoo_seg.cli.cluster"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    result = predict("p", "--engine", "ray")
    assert result.code == 1
    assert result.err.endswith("; pip install 'zoo_seg[scale]'\n")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("machines", "workers", "device", "expected"),
    [
        ([(2, 0)], None, None, (1, 2, "cpu")),
        ([(2, 0)], 2, None, (2, 1, "cpu")),
        ([(16, 0), (16, 0), (2, 0)], None, None, (9, 3, "cpu")),
        ([(0, 0), (16, 0), (16, 0)], None, None, (8, 4, "cpu")),
        ([(16, 0), (16, 0)], 4, None, (4, 8, "cpu")),
        ([(16, 0), (16, 0)], 3, None, (3, 8, "cpu")),
        ([(16, 2), (8, 1)], None, None, (3, 8, "cuda")),
        ([(32, 1), (4, 3)], None, None, (4, 1, "cuda")),
        ([(16, 2), (8, 1)], None, "cpu", (6, 4, "cpu")),
        ([(2, 0)], 3, None, "3 workers on cpu: there are 0 GPUs and 2 cores on 1 machines"),
        ([(2, 0)], None, "cuda", "0 workers on cuda: there are 0 GPUs"),
        ([(16, 2)], 3, "cuda", "3 workers on cuda: there are 2 GPUs"),
        ([(16, 2)], None, "cuda:1", "--device cuda:1; a worker computes on cpu or on a GPU of its own: cuda"),
    ],
)
def test_shares(
    machines: list[tuple[int, int]],
    workers: int | None,
    device: str | None,
    expected: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(cpu), "GPU": float(gpu)}} for cpu, gpu in machines]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 99.0}}])
    if isinstance(expected, str):
        with pytest.raises(OptionError, match=expected):
            cluster.share(workers, device)
    else:
        assert cluster.share(workers, device) == cluster.Share(*expected)


def test_what_is_in_an_archive_is_a_picture(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.png")
    assert np.array_equal(read_image(zipfile.Path(tmp_path / "a.zip", "a.png")), read_image(path))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, staging = f"{tmp_path.as_uri()}/a/b.png", f"{tmp_path.as_uri()}/staging"
    places.write_file(marked_png(Image.new("L", (3, 2), 7), ""), target, staging)

    def fill_disk(file_system: Any, path: str, data: bytes) -> None:
        Path(path).write_bytes(data[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "pipe_file", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        places.write_file(marked_png(Image.new("L", (9, 9)), ""), target, staging)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.png"]
    with Image.open(tmp_path / "a" / "b.png") as image:
        assert image.size == (3, 2)


# --- names that lead elsewhere ------------------------------------------------------------------

ESCAPES = [
    "file:///a/../../x.png",
    "http://h/../../x.png",
    "http://h/%2e%2e/%2E%2E/x.png",
    "http://h/%252e%252e/x.png",
    "http://h/a%2f..%2f..%2fx.png",
    "s3://b/../../x.png",
    "s3://b/..\\..\\x.png",
    "s3://b/a%5c..%5c..%5cx.png",
    "file:///a/../../../../tmp/x.png",
    "file:///",
    "file:///.",
    ".",
]


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "url"])
def test_a_name_that_leads_out_of_the_results_is_refused(
    remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = ESCAPES + ["s3://b/c::d.png"] * remote
    fine = {
        "http://h//etc/x.png": "h/etc/x",
        "s3://b/./a/../k.png": "b/k",
        "http://h/a/....png": "h/a/...",
        "file:///C:/y.png": "C:/y",
        "s3://b/a%20b.png?v": "b/a%20b",
    }
    Path("list.txt").write_text("\n".join([*refused, *fine]))
    failed, found = found_by_ray("list.txt", out := f"{tmp_path.as_uri()}/out" if remote else "out")
    assert [entry for entry, _ in failed] == refused
    refusals = ("would not lie below --out", "names no file", "is a folder")
    assert [reason for _, reason in failed if not any(words in reason for words in refusals)] == []
    assert found == [(entry, f"{out}/{name}") for entry, name in fine.items()]


def found_by_ray(path: str, out: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What fails, and what is found, with where its results go."""
    engine = Ray(argparse.Namespace(out=out, mode="whole", crop=None, stride=None, scales=(1.0,), flip=False))
    failed: list[tuple[str, str]] = []
    return failed, list(engine.found([path], lambda *failure: failed.append(failure)))


def test_keys_of_a_storage_are_any_text() -> None:
    storage = places.place("memory://")[0]
    hidden = ["../../evil.png", "b/../../evil.png"]  # as all whose folders begin with a dot
    bad = ["b\\..\\..\\evil.png", "%2e%2e/evil.png", "x::y.png"]
    for key in ("ok/a.png", *hidden, *bad):
        storage.pipe_file(f"/keys/{key}", b"")
    failed, found = found_by_ray("memory://keys", "out")
    assert {entry for entry, _ in failed} == {f"memory://keys/{key}" for key in bad}
    assert found == [("memory://keys/ok/a.png", "out/ok/a")]


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "url"])
def test_nothing_is_written_outside_of_the_results(
    remote: bool, predict: Run, two_cores: list[str], tmp_path: Path
) -> None:
    path = picture(tmp_path / "p" / "evil.png")
    evil = [f"file:///{'../' * 12}{str(path)[1:]}", "http://h/../../evil.png", "http://h/%2e%2e/evil.png"]
    Path("list.txt").write_text("\n".join([*evil, "p/evil.png"]))
    out = f"{tmp_path.as_uri()}/deep/out" if remote else "deep/out"
    result = predict("list.txt", "--out", out, "--no-overlay", *two_cores)
    assert result.code == 1, result
    written = {each.relative_to(tmp_path).as_posix() for each in tmp_path.rglob("*_mask.png")}
    assert written == {"deep/out/p/evil_mask.png"}
    lines = result.err.splitlines()
    assert len(lines) == len(evil)
    assert all(line.startswith(f"zoo-seg: {url}: its results") for line, url in zip(lines, evil, strict=True))
