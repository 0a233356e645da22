"""One peer doing one work, a run for every line it is sent. Started by `benchmarks/run.py`, in the peers' environment.

    python worker.py mmseg|mmseg_init|ssseg|network|openvino|onnxruntime '{"checkpoint": ..., "image": ..., ...}'

Prints one line of JSON when ready, one after each run, and at the end writes the class map to `mask`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

warnings.filterwarnings("ignore")
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])


def mmseg(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """`inference_model` on a decoded image."""
    import cv2
    import mmseg_peer as peer

    model = peer.load(work["checkpoint"], test_scale=work["test_scale"])
    image = cv2.imread(work["image"])
    return lambda: peer.inference_model(model, image).pred_sem_seg.data[0].numpy()


def mmseg_init(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """`init_model` from a checkpoint on disk."""
    import mmseg_peer as peer

    content = torch.load(work["checkpoint"], map_location="cpu", weights_only=True)
    config = peer.config(*peer.describe(content["state_dict"]))
    del content

    def run() -> np.ndarray:
        peer.init_model(config, work["checkpoint"], device="cpu")
        return np.zeros((1, 1), np.uint8)

    return run


def ssseg(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """ssseg's transforms, `auginference` and the resize of its test.py, on a decoded image's file."""
    import ssseg_peer as peer

    model = peer.load(work["checkpoint"])

    def run() -> np.ndarray:
        x, size = peer.read(work["image"], work["test_scale"])
        return peer.predict(model, x, size)[0].argmax(0).numpy()

    return run


def network(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """The original network of a reference, with its values: a normalised image to class ids."""
    from unittest import mock

    import cv2
    import references

    if work["ssseg"]:
        sys.path.insert(0, work["ssseg"])
        references.stub_fvcore()
    with mock.patch.multiple(torch.nn.init, **references.NO_INIT):
        original: references.Network
        if work["project"] == "mmseg":
            original = references.MMSegNetwork(work["config"], work["changes"])
        else:
            original = references.SSSegNetwork(work["config"])
    references.fill(original, [tuple(scale) for scale in work["scales"]])
    original.model.requires_grad_(False)
    image = cv2.imread(work["image"])[..., ::-1].astype(np.float32)
    x = torch.from_numpy(((image - MEAN) / STD).transpose(2, 0, 1)[None].copy())
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, (0, -width % original.size_divisor, 0, -height % original.size_divisor))
    return lambda: original.logits(padded)[0, :, :height, :width].argmax(0).numpy()


class Plain(torch.nn.Module):
    """mmseg's network from normalised images to class ids: logits, resize to the image and argmax, in one graph."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network.decode_head(self.network.backbone(x))
        return torch.nn.functional.interpolate(logits, size=x.shape[-2:], mode="bilinear").argmax(1)


def plain(work: dict[str, Any]) -> tuple[Plain, Callable[[], np.ndarray]]:
    """mmseg's network, and how the decoded image becomes its input."""
    import cv2
    import mmseg_peer as peer

    network = peer.load(work["checkpoint"], test_scale=work["test_scale"])
    image = cv2.imread(work["image"])

    def normalised() -> np.ndarray:
        return np.ascontiguousarray(((image[..., ::-1].astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)[None])

    return Plain(network).eval(), normalised


def openvino(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """OpenVINO on the plain graph of mmseg's network."""
    import openvino as ov

    network, normalised = plain(work)
    example = torch.from_numpy(normalised())
    with torch.no_grad():
        graph = ov.convert_model(network, example_input=torch.zeros_like(example))
    graph.reshape(list(example.shape))
    precision = {"float32": "f32", "bfloat16": "bf16"}[work["dtype"]]
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(graph, "CPU", options)
    return lambda: compiled(normalised())[0][0]


def onnxruntime(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """ONNX Runtime on the plain graph of mmseg's network."""
    import onnxruntime as ort

    network, normalised = plain(work)
    path = f"{work['mask']}.onnx"
    with torch.no_grad():
        torch.onnx.export(network, (torch.from_numpy(normalised()),), path, dynamo=True)
    del network
    options = ort.SessionOptions()
    options.intra_op_num_threads = work["threads"]
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: normalised()})[0][0]


def main() -> None:
    side, work = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(work["threads"])
    works = (mmseg, mmseg_init, ssseg, network, openvino, onnxruntime)
    sides = {each.__name__: each for each in works}
    run = sides[side](work)
    print(json.dumps({"ready": side}), flush=True)
    result = None
    for _ in sys.stdin:
        started = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), flush=True)
    if result is not None:
        np.save(work["mask"], np.asarray(result).astype(np.uint8))


if __name__ == "__main__":
    main()
