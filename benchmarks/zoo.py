"""Every distinct network beside its original: time, peak memory, class map; and what `zoo-seg list` says of cost.

    python benchmarks/zoo.py measure --peers ~/peers/bin/python [--ssseg CHECKOUT] [PATTERN ...] [--size 1024 2048]
    python benchmarks/zoo.py write        the table and the plot of the docs, and `seconds` of the manifest
    python benchmarks/zoo.py count        `multiply_adds` of the manifest

`measure` takes the networks of `tests/references` and of `pipelines.py` (all, or those that a pattern such as
`upernet_*` fits) one after the other: original and ours in processes of their own, turn by turn, on the same values and
the same image, to the class map. Each result is kept in `zoo.json` as soon as it is there, and what is there is not
measured again, so that it can be stopped at any time. The machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
from reference_checkpoint import filled_state_dict
from run import THREADS, Worker, make_image, serve

import zoo_seg
from zoo_seg.manifest import Architecture, load_manifest, published_manifest

HERE = Path(__file__).resolve().parent
REFERENCES = HERE.parent / "tests" / "references"
RESULTS = HERE / "zoo.json"
PAGE = HERE / "README.md"
PLOT = HERE.parent / "docs" / "assets" / "zoo.svg"
SIZE = (512, 683)
BEGIN, END = "<!-- table: written by zoo.py -->", "<!-- end of zoo.py's table -->"


def networks(patterns: list[str]) -> Iterator[str]:
    """The names of the reference files that the manifest knows, and those of `pipelines.py`, that a pattern fits."""
    known = [path.stem for path in REFERENCES.glob("*.npz") if path.stem.split(".")[0] in load_manifest().models]
    for name in sorted([*known, *pipelines.names()]):
        if any(fnmatchcase(name, each) for each in patterns or ["*"]):
            yield name


def meta_of(name: str) -> dict[str, Any]:
    """How the original network of a reference was built and filled."""
    with np.load(REFERENCES / f"{name}.npz") as file:
        meta: dict[str, Any] = json.loads(file["meta"].item())
        meta["keys"] = json.loads(file["keys"].item())
    return meta


def ours(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """From a decoded image to its class map with `predict`."""
    from PIL import Image

    from zoo_seg.info import ModelInfo
    from zoo_seg.model import SegmentationModel
    from zoo_seg.pretrained import from_tensors

    meta = meta_of(work["network"])
    keys = [(key, tuple(shape), _dtype(key)) for key, shape in meta["keys"]]
    tensors = filled_state_dict(keys, meta["seed"], meta["scales"])
    architecture, stated = _architecture(meta)
    network = from_tensors(Path(work["network"]), tensors, architecture, stated=stated).build()
    names = tuple(map(str, range(meta["num_classes"])))
    info = ModelInfo(classes=names, palette=((0, 0, 0),) * len(names), protocol=meta["project"])
    model = SegmentationModel(network, info).eval()
    image = np.asarray(Image.open(work["image"]))
    return lambda: model.predict(image, resize=None, mode="whole", dtype=work["dtype"]).mask


def _dtype(key: str) -> str:
    whole = key.endswith(("num_batches_tracked", "relative_position_index"))
    return "int64" if whole else "float32"


def _architecture(meta: dict[str, Any]) -> tuple[Architecture, bool]:
    """That of a record of the project with these facts, else the model's."""
    facts = meta["align_corners"], meta["size_divisor"], meta["num_classes"]
    for record in zoo_seg.list_weights(meta["model"], source=meta["project"]):
        if (record.architecture.align_corners, record.architecture.size_divisor, record.num_classes) == facts:
            return record.architecture, True
    model = load_manifest().models[meta["model"]].architecture
    return replace(model, align_corners=meta["align_corners"], size_divisor=meta["size_divisor"]), False


def measure(arguments: argparse.Namespace) -> None:
    """Everything that was not measured yet."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, size = Path(temporary), tuple(arguments.size)
        image = make_image(folder, size)
        for name in networks(arguments.patterns):
            key = name if size == SIZE else f"{name}@{size[0]}x{size[1]}"
            if key in results:
                continue
            results[key] = {"size": size, **_beside(name, image, folder, arguments)}
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            row = results[key]
            print(key, f"{row['seconds']:.2f} s", *(f"{each}: {row[each]}" for each in ("faster", "bfloat16", "same")))


def _beside(name: str, image: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    work: dict[str, Any] = {"network": name, "image": str(image), "threads": THREADS}
    masks = {side: folder / f"{side}.npy" for side in ("float32", "bfloat16", "original")}
    theirs = {"mask": str(masks["original"])}
    if name in pipelines.names():
        work |= {"side": "our pipeline", "files": str(pipelines.write_files(name, folder))}
        command = [sys.executable, __file__, "work", json.dumps({**work, **theirs, "side": "their pipeline"})]
    else:
        meta = meta_of(name)
        work |= {each: meta[each] for each in ("config", "changes", "project", "seed", "scales")}
        work |= {"side": "ours", "ssseg": arguments.ssseg}
        command = [arguments.peers, str(HERE / "peers" / "worker.py"), "network", json.dumps({**work, **theirs})]
    mine = {
        dtype: Worker(
            [sys.executable, __file__, "work", json.dumps({**work, "dtype": dtype, "mask": str(masks[dtype])})]
        )
        for dtype in ("float32", "bfloat16")
    }
    original = Worker(command)
    for _ in range(arguments.runs):
        for worker in (*mine.values(), original):
            worker.run()
    for worker in (*mine.values(), original):
        worker.close()
    seconds = {dtype: statistics.median(worker.seconds) for dtype, worker in mine.items()}
    others = statistics.median(original.seconds)
    ids = {side: np.load(path) for side, path in masks.items()}
    return {
        "seconds": round(seconds["float32"], 4),
        "original": round(others, 4),
        "faster": round(others / seconds["float32"], 2),
        "bfloat16": round(others / seconds["bfloat16"], 2),
        "peak_mib": round(mine["float32"].peak),
        "original_peak_mib": round(original.peak),
        "same": round(float((ids["float32"] == ids["original"]).mean()) * 100, 3),
        "same_bfloat16": round(float((ids["bfloat16"] == ids["original"]).mean()) * 100, 2),
        "runs": arguments.runs,
    }


# --- what is told of it -------------------------------------------------------------------------


def write(_: argparse.Namespace) -> None:
    """The table and the plot, and every model's `seconds` in the manifest."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    head = ["network", "ours", "original", "faster", "bfloat16", "peak memory", "same pixels"]
    rows = [
        [
            f"`{name}`",
            f"{row['seconds']:.2f} s",
            f"{row['original']:.2f} s",
            f"**{row['faster']:.2f}x**",
            f"{row['bfloat16']:.2f}x",
            f"{row['peak_mib']} / {row['original_peak_mib']} MiB",
            f"{row['same']:.2f} %",
        ]
        for name, row in sorted(results.items())
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]
    text = PAGE.read_text(encoding="utf-8")
    text = f"{text.split(BEGIN)[0]}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{text.split(END)[1]}"
    PAGE.write_text(text, encoding="utf-8")
    best: dict[str, float] = {}
    prepared = set(pipelines.names())  # whose images have a size of their own
    for name, row in results.items():
        if (
            name not in prepared and abs(row["size"][0] * row["size"][1] - SIZE[0] * SIZE[1]) < 2000
        ):  # 512x680 is all that some originals take
            model = name.split(".")[0]
            best[model] = min(row["seconds"], best.get(model, float("inf")))
    _put("seconds", {model: float(f"{value:.3g}") for model, value in best.items()})
    plot(best)


def plot(seconds: dict[str, float]) -> None:
    """mIoU over time, one panel a data set, with the front that `zoo-seg list --best` prints."""
    from matplotlib.figure import Figure

    records = [record for record in zoo_seg.list_weights() if record.model in seconds and record.miou]
    datasets = [name for name in ("ade20k", "cityscapes", "voc") if any(each.dataset == name for each in records)]
    families = sorted({each.architecture.family for each in records})
    figure = Figure(figsize=(4.5 * len(datasets), 4.5), layout="constrained")
    for axes, dataset in zip(np.atleast_1d(figure.subplots(1, len(datasets))), datasets, strict=True):
        here = [(seconds[each.model], each.miou or 0.0, each) for each in records if each.dataset == dataset]
        for number, family in enumerate(families):
            points = [(x, y) for x, y, each in here if each.architecture.family == family]
            axes.scatter(*zip(*points or [((), ())], strict=True), s=14, color=f"C{number}", label=family)
        front: list[tuple[float, float]] = []
        for x, y, record in sorted(here, key=lambda each: (each[0], -each[1])):
            if not front or y > front[-1][1]:
                front.append((x, y))
                axes.annotate(record.model, (x, y), (3, -8), textcoords="offset points", fontsize=6)
        axes.step(*zip(*front, strict=True), where="post", color="grey", linewidth=0.8)
        axes.set(title=dataset, xscale="log", xlabel="seconds, 512x683, two CPU cores", ylabel="reported mIoU in %")
        axes.minorticks_off()
        axes.set_xticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(PLOT, metadata={"Date": None})


def count(_: argparse.Namespace) -> None:
    """Every model's multiply-adds."""
    _put("multiply_adds", {name: multiply_adds(name) for name in load_manifest().models})


def multiply_adds(model: str) -> int:
    """Of one image of 512x512, for the classes of the model's first weights; auxiliary heads are not counted."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from zoo_seg.network import build_network

    records = zoo_seg.list_weights(model)
    architecture = records[0].architecture if records else load_manifest().models[model].architecture
    with torch.device("meta"):
        network = build_network(architecture, records[0].num_classes if records else 21).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.forward_logits(torch.zeros(1, 3, 512, 512))
    return int(counter.get_total_flops()) // 2


def _put(field: str, values: dict[str, Any]) -> None:
    """A field of the manifest's models, on a line of its own before the architecture."""
    path, lines, entry = published_manifest(), [], ""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if found := re.fullmatch(r' {4}"([^"]+)": \{\n', line):
            entry = found[1]
        if entry in values and line.startswith(f'      "{field}": '):
            continue
        if entry in values and line.startswith('      "architecture": '):
            lines.append(f'      "{field}": {values[entry]},\n')
        lines.append(line)
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """The three works, and the one that `measure` gives to its processes."""
    if sys.argv[1:2] == ["work"]:
        sides = {"ours": ours, "our pipeline": pipelines.ours, "their pipeline": pipelines.theirs}
        serve(sides, json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = parser.add_subparsers(required=True)
    measuring = works.add_parser("measure")
    measuring.set_defaults(run=measure)
    measuring.add_argument("patterns", nargs="*")
    measuring.add_argument("--peers", required=True, help="the Python of the peers' environment")
    measuring.add_argument("--ssseg", help="a checkout of SSSegmentation")
    measuring.add_argument("--size", type=int, nargs=2, default=SIZE, help="height and width of the image")
    measuring.add_argument("--runs", type=int, default=3)
    works.add_parser("write").set_defaults(run=write)
    works.add_parser("count").set_defaults(run=count)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
