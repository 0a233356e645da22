"""Many processes with many threads ask for the same weights at the same moment: downloads, networks, memory.

    python benchmarks/crowd.py [--processes 16] [--threads 4] [--model pspnet_resnet50_os8.voc] [--write]

A server of this process has the file (full size, generated values) and the cache is empty. Each thread of each process,
all of them started afresh, loads the network, gives it the same image, and keeps it. Memory is the sum over the
processes of what Linux calls Pss, in which pages that several share are counted once: before the first asks, at most
until all have answered (looked at five times a second), and then. `--write` puts the table into `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from reference_checkpoint import fill

import zoo_seg
import zoo_seg.factory  # what is imported is no memory of the networks

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
MIB = 1 << 20


# --- one process of the crowd -------------------------------------------------------------------


def worker(model: str, tag: str, threads: int) -> None:
    """Each line read is a signal to go on, each line written an answer."""
    torch.set_num_threads(1)
    networks: list[zoo_seg.SegmentationModel] = []
    say({})
    crowd = [
        threading.Thread(target=lambda: networks.append(zoo_seg.create_model(model, tag, progress=False)))
        for _ in range(threads)
    ]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    image = torch.linspace(-2, 2, 3 * 65 * 65).reshape(1, 3, 65, 65)
    with torch.inference_mode():
        maps = [hashlib.sha256(network(image).argmax(1).numpy().tobytes()).hexdigest() for network in networks]
    say({"maps": maps})


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)
    sys.stdin.readline()


# --- the crowd ----------------------------------------------------------------------------------


class Counting(SimpleHTTPRequestHandler):
    """Serves a folder and counts."""

    asked = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        with self.lock:
            Counting.asked += 1
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


class Memory(threading.Thread):
    """Watches what some processes need together, in bytes."""

    def __init__(self, processes: list[int]) -> None:
        super().__init__(daemon=True)
        self.processes, self.done = processes, threading.Event()
        self.before = self.most = self.now = self.look()
        self.start()

    def look(self) -> int:
        found = (Path(f"/proc/{process}/smaps_rollup").read_text() for process in self.processes)
        return sum(int(re.findall(r"^Pss:\s+(\d+) kB", text, re.M)[0]) * 1024 for text in found)

    def run(self) -> None:
        while not self.done.wait(0.2):
            self.most = max(self.most, self.look())

    def stop(self) -> None:
        self.done.set()
        self.join()
        self.now = self.look()
        self.most = max(self.most, self.now)


def crowd(weights: zoo_seg.Weights, processes: int, threads: int, folder: Path) -> dict[str, Any]:
    size = publish(weights, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "ZOO_SEG_MIRROR": base, "ZOO_SEG_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--worker", weights.model, weights.tag, "--threads", str(threads)]
    crowd = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    answers(crowd)
    memory = Memory([process.pid for process in crowd])
    start = time.perf_counter()
    go_on(crowd)
    maps = [one for answer in answers(crowd) for one in answer["maps"]]
    seconds = time.perf_counter() - start
    memory.stop()
    go_on(crowd)
    return {
        "downloads": Counting.asked,
        "networks": len(maps),
        "alike": len(set(maps)) == 1,
        "size": size,
        "memory": memory,
        "seconds": seconds,
    }


def publish(weights: zoo_seg.Weights, folder: Path) -> int:
    """A file of full size under the published name; returns its bytes."""
    network = zoo_seg.create_model(weights.model, num_classes=weights.num_classes)
    values = {name: torch.from_numpy(fill(name, value.shape)) for name, value in network.state_dict().items()}
    torch.save({"model": values}, folder / weights.files[0].name)
    return (folder / weights.files[0].name).stat().st_size


def answers(crowd: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    return [json.loads(process.stdout.readline()) for process in crowd if process.stdout]


def go_on(crowd: list[subprocess.Popen[str]]) -> None:
    for process in crowd:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--model", default="pspnet_resnet50_os8.voc", help="model and tag (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.name}")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(*arguments.worker, arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights = zoo_seg.get_weights(*arguments.model.split("."))
        got = crowd(weights, arguments.processes, arguments.threads, Path(folder))
    memory = got["memory"]
    each = (memory.now - memory.before) / got["networks"]
    lines = [
        "| Processes | Threads | Downloads | Agreeing networks | File | Before | At most | After | Per network |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| {arguments.processes} | {arguments.threads} | {got['downloads']} | "
        f"{got['networks'] if got['alike'] else 'not all'} | "
        + " | ".join(f"{size / MIB:.0f} MiB" for size in (got["size"], memory.before, memory.most, memory.now, each))
        + " |",
    ]
    print("\n".join(lines), f"\n{got['seconds']:.1f} s")
    if arguments.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        table = "<!-- table: crowd -->\n\n" + "\n".join(lines) + "\n\n"
        DOCUMENT.write_text(re.sub(r"<!-- table: crowd -->\n(\n\|.*)?(\n\|.*)*\n", table, text), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
