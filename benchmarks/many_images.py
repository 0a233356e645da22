"""`zoo-seg predict` on a folder of thousands of small images, some of them broken: time, memory, failures listed.

    python benchmarks/many_images.py [--counts 100 10000] [--write]

Every hundredth file is cut short, text, or an image that claims 50000x50000 pixels. The network is the packaged one;
memory is the most that the process held. `--write` puts the table into `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
HEAD = "| Images | Of them broken | Class maps | Failures listed | Exit code | Seconds | At most |"


def draw(folder: Path, count: int) -> int:
    """Soft random images of 48x64 in a hundred folders; returns how many are broken."""
    random = np.random.default_rng(0)
    broken = 0
    for index in range(count):
        path = folder / f"{index % 100:02}" / f"image {index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        noise.resize((64, 48)).save(buffer, "JPEG")
        content = buffer.getvalue()
        if index % 100 == 99:
            broken += 1
            content = (content[: len(content) // 2], b"no image", bomb())[broken % 3]
        path.write_bytes(content)
    return broken


def bomb() -> bytes:
    """A PNG of 1 KB that says it has 50000x50000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(900))) + chunk(b"IEND", b"")
    )


def measure(count: int) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        images, out, report = (Path(scratch) / name for name in ("images", "out", "report.json"))
        broken = draw(images, count)
        command = [
            "-m",
            "zoo_seg",
            "predict",
            str(images),
            "--resize",
            "48",
            "--out",
            str(out),
            "--json",
            str(report),
        ]
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        maps = sum(1 for _ in out.rglob("*_mask.png"))
        listed = len(json.loads(report.read_text())["failed"])
        code, peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss >> 10
    return f"| {count:,} | {broken} | {maps:,} | {listed} | {code} | {seconds:.0f} | {peak} MiB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.name}")
    arguments = parser.parse_args()
    lines = [HEAD, "| --- " * HEAD.count(" | ") + "| --- |"]
    for count in arguments.counts:
        lines.append(measure(count))
        print(lines[-1], flush=True)
    if arguments.write:
        table = "<!-- table: images -->\n\n" + "\n".join(lines) + "\n"
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(re.sub(r"<!-- table: images -->\n(\n\|.*)?(\n\|.*)*\n", table, text), encoding="utf-8")


if __name__ == "__main__":
    main()
