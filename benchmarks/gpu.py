"""What a GPU makes of the networks: images a second, beside the plain eager network of timm parts in the same run.

    python benchmarks/gpu.py [--batch 8] [--only pspnet] [--write]
    python benchmarks/gpu.py --device cpu --smoke      # the same code in small form, where there is no GPU

An image is a normalised tensor that already lies on the device; what is timed is its way to a class map at its own
size. All versions of a network have the same random values and take turns, round by round; the medians are given.
The card's rate is that of one large matrix product in the version's type, measured in the same run. A version's share
of it counts the multiplications that it does itself: what the factorised bottleneck saves is no merit there.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from steps import textbook, undivided
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo_seg
from zoo_seg.families.pspnet import PSPHead
from zoo_seg.inference.labels import class_map
from zoo_seg.inference.prepare import prepare
from zoo_seg.layers.resample import resize
from zoo_seg.network import SegmentationNetwork

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- GPU table: written by gpu.py -->", "<!-- end of the GPU table -->"
HEAD = [
    "work",
    "version",
    "images/s",
    "than plain float32",
    "than plain bfloat16",
    "of the card's rate",
    "same pixels",
]
CLASSES = 19


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    shrink: int
    """The works' heights and widths are divided by it."""
    batch: int
    rounds: int
    calls: int
    """Calls that are timed together in a round."""
    matrix: int
    """Rows and columns of the matrix product that tells the card's rate."""


FULL, SMOKE = Scale(1, 8, 7, 10, 8192), Scale(16, 1, 1, 1, 256)
WORKS = {
    "pspnet_resnet50_os8": (512, 1024),
    "fcn_resnet50_os8": (512, 1024),
    "semanticfpn_resnet50": (1024, 2048),
}
PLAIN, PLAIN_HALF = "plain, float32", "plain, bfloat16"


@dataclass
class Version:
    """A way to compute the class map (N, H, W) of images (N, 3, H, W) of one type."""

    name: str
    dtype: torch.dtype
    run: Callable[[Tensor], Tensor]
    work: float = 0.0
    """Multiplications and additions of one batch."""


def versions(model: SegmentationNetwork, device: torch.device) -> list[Version]:
    """The plain network, and ours in steps."""
    network = model.network.with_parts(model.backbone, model.head).requires_grad_(False).to(device)
    half = copy.deepcopy(network).bfloat16()
    ready = prepare(network, device, torch.bfloat16, compiled=True)
    compiled = torch.compile(ready.forward_logits)
    graphs = torch.compile(ready.forward_logits, mode="reduce-overhead")
    return [
        Version(PLAIN, torch.float32, plain(network)),
        Version(PLAIN_HALF, torch.bfloat16, plain(half)),
        Version("ours, bfloat16", torch.bfloat16, ours(ready.forward_logits)),
        Version("the same compiled", torch.bfloat16, ours(compiled)),
        Version("the same with CUDA graphs", torch.bfloat16, ours(graphs)),
    ]


def plain(network: SegmentationNetwork) -> Callable[[Tensor], Tensor]:
    """As the papers have it: the undivided bottleneck, BatchNorm, full-size logits and their argmax."""
    weight = undivided(network.head) if isinstance(network.head, PSPHead) else None

    def run(x: Tensor) -> Tensor:
        logits = network.forward_logits(x) if weight is None else textbook(network, weight, x)
        return resize(logits, (x.shape[-2], x.shape[-1])).argmax(1)

    return run


def ours(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The prepared network (folded, channels_last), and the class map without full-size logits."""
    return lambda x: class_map(forward(x.to(memory_format=torch.channels_last)), [(x.shape[-2], x.shape[-1])])


# --- the measuring ------------------------------------------------------------------------------


def seconds(run: Callable[[], object], calls: int, device: torch.device) -> float:
    """Of one call."""
    wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    wait(device)
    return (time.perf_counter() - started) / calls


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(dtype: torch.dtype, scale: Scale, device: torch.device) -> float:
    """Multiplications and additions a second in one large matrix product: the best of several tries."""
    a, b = (torch.randn(scale.matrix, scale.matrix, device=device).to(dtype) for _ in range(2))
    return 2 * scale.matrix**3 / min(seconds(lambda: a @ b, scale.calls, device) for _ in range(scale.rounds + 3))


@torch.inference_mode()
def measure(name: str, scale: Scale, device: torch.device) -> list[list[str]]:
    """The rows of one network."""
    size = WORKS[name][0] // scale.shrink, WORKS[name][1] // scale.shrink
    torch.manual_seed(0)
    x = torch.randn(scale.batch, 3, *size, device=device)
    with torch.inference_mode(False):
        found = versions(zoo_seg.create_model(name, num_classes=CLASSES).eval(), device)
    maps = {}
    for version in found:
        image = x.to(version.dtype)
        for _ in range(3):  # compiles, and records the graph
            maps[version.name] = version.run(image).cpu()
    for version in found[:3]:  # what is compiled does the third one's work
        with FlopCounterMode(display=False) as counter:
            version.run(x.to(version.dtype))
        version.work = counter.get_total_flops()
    for version in found[3:]:
        version.work = found[2].work
    times: dict[str, list[float]] = {version.name: [] for version in found}
    for _ in range(scale.rounds):
        for version in found:
            image = x.to(version.dtype)
            times[version.name].append(seconds(lambda v=version, p=image: v.run(p), scale.calls, device))
    rates = {dtype: matrix_rate(dtype, scale, device) for dtype in (torch.float32, torch.bfloat16)}
    medians = {version: statistics.median(values) for version, values in times.items()}
    return [
        [
            f"{name}, {scale.batch} x {size[0]}x{size[1]}",
            version.name,
            f"{scale.batch / medians[version.name]:.1f}",
            f"{medians[PLAIN] / medians[version.name]:.2f}x",
            f"{medians[PLAIN_HALF] / medians[version.name]:.2f}x",
            f"{version.work / medians[version.name] / rates[version.dtype]:.0%}",
            f"{float((maps[version.name] == maps[PLAIN]).double().mean()):.2%}",
        ]
        for version in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="small images, one round; the figures say nothing")
    parser.add_argument("--batch", type=int, help="images at a time")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "gpu.py: torch finds no CUDA device here; '--device cpu --smoke' runs the same code in small\n")
    scale = SMOKE if arguments.smoke else FULL
    if arguments.batch:
        scale = dataclasses.replace(scale, batch=arguments.batch)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # for the plain network as well
    names = [name for name in WORKS if arguments.only in name]
    table = [row for name in names for row in measure(name, scale, device)]
    lines = [f"| {' | '.join(cells)} |" for cells in [HEAD, ["---"] * len(HEAD), *table]]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    text = f"Measured on: {where}, torch {torch.__version__}.\n\n" + "\n".join(lines)
    print(text)
    if arguments.write:
        page = README.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        README.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
