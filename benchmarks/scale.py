"""`predict --engine ray` beside the one process of `--engine local`, a core for each: images a second.

    python benchmarks/scale.py --write

Each row is a process of its own that predicts generated images (640x480 JPEG) and writes masks and overlays. The
rate counts from the first quarter of the images to nine tenths of them: starting and ending are left out, for they
take as long with a million images; the time until the first result is a column of its own. What a million images
take on N workers is computed from the processor time that a worker spends on an image, which other programs on the
machine change less than the rate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "scale.md"
ROWS = {"one process: `--engine local`": 0, "`--engine ray --workers 1`": 1, "`--engine ray --workers 2`": 2}
"""Workers of each row."""


def run(workers: int, weights: str, model: str | None, images: Path, out: Path) -> dict[str, float]:
    """One row, in this process."""
    import torch

    import zoo_seg
    from zoo_seg.cli.predict import _write
    from zoo_seg.scale import cluster
    from zoo_seg.scale.jobs import Job, Work

    torch.set_num_threads(1)
    name, _, tag = weights.partition(".")
    network = zoo_seg.create_model(model or name, weights if model else tag)
    paths = sorted(images.iterdir())
    jobs = [Job(str(path), str(out / path.stem), ("overlay", "mask")) for path in paths]
    work = Work({"device": "cpu"}, 0.5, False)
    first, last = len(jobs) // 4, len(jobs) * 9 // 10
    ends, spent, memory = list[float](), list[float](), 0.0

    def watch(outcomes: Iterator[object]) -> None:
        nonlocal memory
        begun = time.perf_counter()
        for number, _ in enumerate(outcomes):
            ends.append(time.perf_counter() - begun)
            if number in (first, last):
                spent.append(sum(cpu for cpu, _ in workers_now()) if workers else time.process_time())
                memory = max((peak for _, peak in workers_now()), default=0.0)

    if workers:
        with cluster.cluster(None):
            watch(cluster.predict(jobs, network, work, cluster.Share(workers, 1, "cpu"), str(out / "staging")))
    else:
        watch(work.run(jobs, network, Path, _write))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate, cpu = (last - first) / (ends[last] - ends[first]), (spent[1] - spent[0]) / (last - first)
    return {"rate": rate, "cpu": cpu, "first": ends[0], "memory": memory}


def workers_now() -> Iterator[tuple[float, float]]:
    """Of each worker of this machine the processor time in seconds, and the most memory it has held in MiB."""
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if (each / "cmdline").read_text().startswith("ray::MapWorker"):
                (line,) = (line for line in (each / "status").read_text().splitlines() if line.startswith("VmHWM"))
                ticks = (each / "stat").read_text().rpartition(")")[2].split()[11:13]
                yield sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), int(line.split()[1]) / 1024
        except OSError:
            continue  # it has ended


def plan_a_million() -> dict[str, float]:
    """Memory and time of the driver: a plan of a million images, as it travels to the cluster and comes back."""
    from zoo_seg.cli.outcome import Outcome
    from zoo_seg.cli.plan import note, plan
    from zoo_seg.scale import cluster

    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    names = (f"cameras/{number % 1000:04}/frame_{number:08}" for number in range(1_000_000))
    found = ((f"s3://bucket/images/{name}.jpg", f"s3://bucket/masks/{name}") for name in names)
    outcome = Outcome()
    jobs = list(plan(found, ("overlay", "mask"), [], lambda *_: None))
    tables = [cluster._table(jobs[first : first + 64], first) for first in range(0, len(jobs), 64)]
    for job in jobs:
        note(job, None, outcome)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(map(len, tables)) == len(outcome.done)
    return {"memory": (after - before) / 1024, "seconds": time.perf_counter() - begun}


def draw(folder: Path, count: int) -> None:
    """Pieces of the drawn street, none like another."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    with Image.open(HERE.parent / "examples" / "street.jpg") as street:
        street = street.convert("RGB").resize((1280, 960))
        for number in range(count):
            left, top = int(random.integers(640)), int(random.integers(480))
            street.crop((left, top, left + 640, top + 480)).save(folder / f"{number:04}.jpg", quality=92)


def own_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments]
    environment = {
        **os.environ,
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
    }  # as the process it is compared with
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return answer


def write(lines: list[str], mark: str) -> None:
    """Put lines between their marks in docs/scale.md."""
    begin, end = f"<!-- {mark}: written by benchmarks/scale.py -->", f"<!-- end of {mark} -->"
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(begin)[0], text.split(end)[1]
    PAGE.write_text(f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{after}", encoding="utf-8")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3, help="of each row, in turn; the median counts")
    parser.add_argument("--weights", default="semanticfpn_mobilenetv4_small.camvid_zoo")
    parser.add_argument("--model", help="where --weights is a file")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/scale.md")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        task: dict[str, Any] = json.loads(arguments.work)
        print(
            json.dumps(
                run(**{**task, "images": Path(task["images"]), "out": Path(task["out"])}) if task else plan_a_million()
            )
        )
        return
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary, "images")
        images.mkdir()
        draw(images, arguments.images)
        for turn in range(arguments.runs):
            for name, workers in ROWS.items():
                out = Path(temporary, f"{workers}_{turn}")
                task = {"workers": workers, "weights": arguments.weights, "model": arguments.model}
                task |= {"images": str(images), "out": str(out)}
                measured[name].append(own_process("--work", json.dumps(task)))
                print(name, measured[name][-1], flush=True)
        size = statistics.mean(
            sum(path.stat().st_size for path in out.glob(f"{n:04}_*")) for n in range(arguments.images)
        )
    driver = own_process("--work", "{}")
    tell(measured, size, driver, arguments)


def tell(measured: dict[str, list[dict[str, float]]], size: float, driver: dict[str, float], arguments: Any) -> None:
    import ray
    import torch

    def median(name: str, what: str) -> float:
        return statistics.median(each[what] for each in measured[name])

    local, _, two = ROWS
    rows = [
        [
            name,
            f"{median(name, 'rate'):.2f}",
            f"{median(name, 'rate') / median(local, 'rate'):.2f}x",
            f"{median(name, 'cpu'):.3f} s",
            f"{median(name, 'cpu') / median(local, 'cpu'):.2f}x",
            f"{median(name, 'first'):.0f} s",
            f"{median(name, 'memory'):.0f} MiB",
        ]
        for name in ROWS
    ]
    head = [
        "",
        "images/s",
        "beside local",
        "processor time an image",
        "beside local",
        "first result after",
        "memory",
    ]
    where = f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}, Ray {ray.__version__}"
    what = f"`{arguments.model or arguments.weights}`, {arguments.images} JPEGs of 640x480, {arguments.runs} runs"
    busy = os.getloadavg()[2]
    load = "the machine did nothing else"
    if busy > 3:
        load = f"other programs ran at the same time (load {busy:.0f}), so that the processor times compare, not rates"
    first = [f"Measured on: {where}; {what}; {load}.", "", *table([*head[:-1], "memory of a worker"], rows)]

    each = median(two, "cpu")
    costs = [
        [f"{count}", f"{count / each:.1f}", f"{1e6 * each / count / 3600:.1f} h", f"{1e6 * each / 3600:.0f} h"]
        for count in (1, 10, 100)
    ]
    second = table(["workers of one core", "images/s", "a million images take", "core hours"], costs)
    second += [
        "",
        f"Masks and overlays of a million such images: {size / 1e3:.0f} GB. The plan and the report of a million "
        f"images, where the command runs: {driver['memory']:.0f} MiB and {driver['seconds']:.0f} s.",
    ]
    print("\n".join([*first, "", *second]))
    if arguments.write:
        write(first, "rates")
        write(second, "costs")


if __name__ == "__main__":
    main()
