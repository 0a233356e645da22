"""Our speed and memory beside the peers', in one run, as a table in `benchmarks/README.md`.

    python benchmarks/run.py --peers ~/peers/bin/python [--only pspnet] [--runs 5] [--write]

Each row runs us and the peer in processes of their own, turn by turn (A B A B ...), on the same image and the same
full-size checkpoint (generated values, see `reference_checkpoint.py`), and compares the class maps. Medians; the
machine should be idle. `--peers` is the Python of the environment that `peers/setup.sh` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import zoo_seg

HERE = Path(__file__).resolve().parent
THREADS = 2


@dataclass(frozen=True)
class Row:
    """One line of the table: our work, the peer's, and the targets."""

    name: str
    model: str
    classes: int
    source: str
    """Whose checkpoint both sides load, `mmseg` or `ssseg`."""
    peer: str
    """What `peers/worker.py` runs."""
    size: tuple[int, int] = (512, 683)
    """Height and width of the image, which is also the test size."""
    dtype: str = "float32"
    peer_dtype: str = "float32"
    faster: float | None = None
    """The target; None where the row is there for information only."""
    memory: float | None = None
    peer_source: str | None = None
    """Whose checkpoint the peer loads where it is not ours: the networks differ a little, and so do the pixels."""


PSPNET, FCN, FPN = "pspnet_resnet50_os8", "fcn_resnet50_os8", "semanticfpn_resnet50"
ROWS = [
    Row("PSPNet R-50-D8, 150 classes, 512x683", PSPNET, 150, "mmseg", "mmseg", faster=2, memory=0.7),
    Row("the same in bfloat16", PSPNET, 150, "mmseg", "mmseg", dtype="bfloat16", faster=4),
    Row("the same in float32", PSPNET, 150, "mmseg", "openvino", faster=1.3),
    Row(
        "the same, both in bfloat16",
        PSPNET,
        150,
        "mmseg",
        "openvino",
        dtype="bfloat16",
        peer_dtype="bfloat16",
        faster=1.1,
    ),
    Row("the same in float32, for information", PSPNET, 150, "mmseg", "onnxruntime"),
    Row("PSPNet R-50-D8, 150 classes, 512x683", PSPNET, 150, "ssseg", "ssseg", faster=1.6),
    Row("FCN R-50-D8, 150 classes, 512x683", FCN, 150, "ssseg", "ssseg", faster=1.6),
    Row("FCN; mmseg's concatenates its input", FCN, 150, "ssseg", "mmseg", faster=1.6, peer_source="mmseg"),
    Row("Semantic FPN R-50, 150 classes, 512x683", FPN, 150, "mmseg", "mmseg", faster=1.6),
    Row("Semantic FPN R-50, 150 classes, 512x683", FPN, 150, "ssseg", "ssseg", faster=1.6),
    Row("PSPNet R-50-D8, 19 classes, 1024x2048", PSPNET, 19, "mmseg", "mmseg", (1024, 2048), faster=1.6, memory=0.6),
]
INIT = Row("cached weights to ready network, PSPNet R-50-D8", PSPNET, 150, "mmseg", "mmseg_init", faster=3)


# --- the work, in a process of its own ----------------------------------------------------------


def ours(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """From a decoded image to its class map with `predict`."""
    from PIL import Image

    model = cached(work)
    image = np.asarray(Image.open(work["image"]))
    return lambda: model.predict(image, resize=None, dtype=work["dtype"]).mask


def cached(work: dict[str, Any]) -> zoo_seg.SegmentationModel:
    """The network with the checkpoint as published weights are had: a record, a mirror and the cache."""
    checkpoint, classes = Path(work["checkpoint"]), work["classes"]
    os.environ.update(ZOO_SEG_HOME=str(checkpoint.parent / "home"), ZOO_SEG_MIRROR=str(checkpoint.parent))
    like = zoo_seg.get_weights(work["model"], "ade20k")
    record = replace(
        like,
        id=f"{like.model}.{checkpoint.stem}",
        tag=checkpoint.stem,
        protocol=work["source"],
        num_classes=classes,
        classes=tuple(map(str, range(classes))),
        palette=((0, 0, 0),) * classes,
        files=(replace(like.files[0], url=f"https://example.org/{checkpoint.name}", mirrors=(), size=None),),
    )
    return zoo_seg.create_model(work["model"], record, progress=False)


def ours_init(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """From a name to a ready network whose file is in the cache."""
    folder = Path(work["checkpoint"]).parent
    published = folder / "mirror" / zoo_seg.get_weights(PSPNET, "ade20k").files[0].name
    published.parent.mkdir(exist_ok=True)
    shutil.copy(work["checkpoint"], published)
    os.environ.update(ZOO_SEG_HOME=str(folder / "home"), ZOO_SEG_MIRROR=str(published.parent))

    def run() -> np.ndarray:
        zoo_seg.create_model(work["model"], "ade20k")
        return np.zeros((1, 1), np.uint8)

    return run


def ours_slide(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """Windows over an image whose float32 logits would take 10 GB."""
    model = cached(work)
    image = np.random.default_rng(0).integers(0, 256, (*work["size"], 3), dtype=np.uint8)
    return lambda: model.predict(image, resize=None, mode="slide", crop=(512, 512), stride=(341, 341)).mask


def ours_folder(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """A folder of images of mixed sizes: streamed, or one call of `predict` after the other."""
    from PIL import Image

    folder = Path(work["checkpoint"]).parent / "images"
    if not folder.exists():
        folder.mkdir()
        street = Image.open(HERE.parent / "examples" / "street.jpg")
        sizes = np.random.default_rng(0).integers((320, 240), (800, 600), (100, 2))
        for i, (width, height) in enumerate(sizes.tolist()):
            street.resize((width, height)).save(folder / f"{i:03}.jpg", quality=92)
    paths = sorted(folder.iterdir())
    model = cached(work)
    model.preprocess = zoo_seg.get_weights(FPN, "ade20k").preprocess

    def run() -> np.ndarray:
        results = list(model.stream(paths)) if work["stream"] else [model.predict(path) for path in paths]
        mask: np.ndarray = results[-1].mask
        return mask

    return run


def serve(sides: Mapping[str, Callable[[dict[str, Any]], Callable[[], np.ndarray]]], work: dict[str, Any]) -> None:
    """One run for every line of standard input; see `peers/worker.py`."""
    import torch

    torch.set_num_threads(THREADS)
    run = sides[work["side"]](work)
    print(json.dumps({"ready": work["side"]}), flush=True)
    result = None
    for _ in sys.stdin:
        started = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), flush=True)
    if result is not None:
        np.save(work["mask"], result)


class Worker:
    """A process that does one piece of work whenever it is told to."""

    def __init__(self, command: list[str], warm: bool = True) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[float] = []
        self.peak = 0.0
        self._answer()  # ready
        if warm:
            self.run(counted=False)

    def run(self, counted: bool = True) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.peak = answer["peak_mib"]
        if counted:
            self.seconds.append(answer["seconds"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # the peers print notices of their own
            if line.startswith('{"'):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"{' '.join(self.process.args[:3])} ended early")  # type: ignore[index]


# --- the comparison -----------------------------------------------------------------------------


def compare(row: Row, peers: str, folder: Path, runs: int) -> list[str]:
    """The cells of a row."""
    image = make_image(folder, row.size)
    work: dict[str, Any] = {
        "checkpoint": str(make_checkpoint(folder, row, peers)),
        "image": str(image),
        "threads": THREADS,
        "model": row.model,
        "source": row.source,
        "classes": row.classes,
        "test_scale": [row.size[1], row.size[0]],
    }
    theirs = make_checkpoint(folder, replace(row, source=row.peer_source or row.source), peers)
    mask = {side: folder / f"{side}.npy" for side in ("ours", "peer")}
    side = "ours_init" if row.peer == "mmseg_init" else "ours"
    our_work = {**work, "side": side, "dtype": row.dtype, "mask": str(mask["ours"])}
    peer_work = {**work, "checkpoint": str(theirs), "dtype": row.peer_dtype, "mask": str(mask["peer"])}
    us = Worker([sys.executable, __file__, "--work", json.dumps(our_work)])
    peer = Worker([peers, str(HERE / "peers" / "worker.py"), row.peer, json.dumps(peer_work)])
    for _ in range(runs):
        us.run()
        peer.run()
    us.close()
    peer.close()
    mine, other = statistics.median(us.seconds), statistics.median(peer.seconds)
    same = float((np.load(mask["ours"]) == np.load(mask["peer"])).mean())
    comparable = row.peer != "mmseg_init" and row.peer_source is None
    memory = us.peak / peer.peak
    cells = [
        row.name,
        row.peer,
        f"{mine:.2f} s",
        f"{other:.2f} s",
        f"**{other / mine:.2f}x**",
        f"{row.faster:g}x" if row.faster else "-",
        f"{us.peak:.0f} / {peer.peak:.0f} MiB = {memory:.2f}" + (f" (target {row.memory})" if row.memory else ""),
        f"{same:.2%}" if comparable else "-",
    ]
    print("  ".join(cells), flush=True)
    return cells


def slide(peers: str, folder: Path) -> list[str]:
    """Peak memory on an image of 4096x4096."""
    row = Row("PSPNet R-50-D8, 150 classes, 4096x4096, slide", PSPNET, 150, "mmseg", "-")
    work: dict[str, Any] = {
        "side": "ours_slide",
        "model": row.model,
        "source": row.source,
        "classes": row.classes,
        "checkpoint": str(make_checkpoint(folder, row, peers)),
    }
    work |= {"size": [4096, 4096], "mask": str(folder / "m")}
    worker = Worker([sys.executable, __file__, "--work", json.dumps(work)], warm=False)
    worker.run()
    worker.close()
    cells = [
        row.name,
        "10 GB of logits",
        f"{worker.seconds[0]:.0f} s",
        "-",
        "-",
        "-",
        f"{worker.peak:.0f} MiB (target 2384)",
        "-",
    ]
    print("  ".join(cells), flush=True)
    return cells


def folder_of_images(peers: str, folder: Path, runs: int) -> list[str]:
    """100 images streamed, beside one call of `predict` after the other."""
    row = Row("Semantic FPN R-50, a folder of 100 images of mixed size", FPN, 150, "mmseg", "-", faster=1.3)
    work = {
        "side": "ours_folder",
        "model": row.model,
        "source": row.source,
        "classes": row.classes,
        "checkpoint": str(make_checkpoint(folder, row, peers)),
    }
    workers = [
        Worker([sys.executable, __file__, "--work", json.dumps({**work, "stream": stream, "mask": str(folder / "m")})])
        for stream in (True, False)
    ]
    for _ in range(runs):
        for worker in workers:
            worker.run()
    for worker in workers:
        worker.close()
    mine, theirs = (statistics.median(worker.seconds) for worker in workers)
    memory = f"{workers[0].peak:.0f} / {workers[1].peak:.0f} MiB"
    cells = [
        row.name,
        "one by one",
        f"{mine:.1f} s",
        f"{theirs:.1f} s",
        f"**{theirs / mine:.2f}x**",
        "1.3x",
        memory,
        "-",
    ]
    print("  ".join(cells), flush=True)
    return cells


def listing(runs: int) -> list[str]:
    """`zoo-seg list` beside an interpreter that does nothing."""

    def seconds(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    pairs = [(seconds("-m", "zoo_seg", "list"), seconds("-c", "pass")) for _ in range(3 * runs)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    cells = ["`zoo-seg list`", "`python -c pass`", f"{mine:.2f} s", f"{theirs:.2f} s"]
    cells += [f"**+{mine - theirs:.2f} s**", "+0.25 s", "-", "-"]
    print("  ".join(cells), flush=True)
    return cells


def make_image(folder: Path, size: tuple[int, int]) -> Path:
    """The drawn street at the size the network is given."""
    from PIL import Image

    path = folder / f"{size[0]}x{size[1]}.png"
    if not path.exists():
        Image.open(HERE.parent / "examples" / "street.jpg").resize((size[1], size[0])).save(path)
    return path


def make_checkpoint(folder: Path, row: Row, peers: str) -> Path:
    """A full-size checkpoint with the names of the row's project."""
    path = folder / f"{row.source}_{row.model}_{row.classes}.pth"
    if not path.exists():
        script = HERE / "peers" / "make_checkpoint.py"
        subprocess.run([peers, str(script), row.source, row.model, str(row.classes), str(path)], check=True)
    return path


HEAD = ["work", "peer", "zoo_seg", "peer", "faster", "target", "peak memory", "same pixels"]
BEGIN, END = "<!-- table: written by run.py -->", "<!-- end of the table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the Python of the peers' environment")
    parser.add_argument("--only", default="", help="rows whose name or peer contains this")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep generated checkpoints here")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        serve(globals(), json.loads(arguments.work))
        return
    if not arguments.peers:
        parser.error("--peers is needed; see benchmarks/peers/README.md")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in [*ROWS, INIT] if arguments.only in f"{row.name} {row.peer}"]
        table = [compare(row, arguments.peers, folder, arguments.runs) for row in rows]
        if arguments.only in "slide":
            table.append(slide(arguments.peers, folder))
        if arguments.only in "folder":
            table.append(folder_of_images(arguments.peers, folder, 2))
        if arguments.only in "list":
            table.append(listing(arguments.runs))
    if arguments.write:
        write(table)


def write(table: list[list[str]]) -> None:
    """Put the table between its marks in the README beside this file."""
    import torch

    lines = [f"| {' | '.join(cells)} |" for cells in [HEAD, ["---"] * len(HEAD), *table]]
    where = f"{platform.processor() or platform.machine()}, {THREADS} threads, torch {torch.__version__}"
    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(
        f"{before}{BEGIN}\n\nMeasured on: {where}.\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
