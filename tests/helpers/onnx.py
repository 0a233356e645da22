"""An exported network beside the one it was made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo_seg
from zoo_seg.model import SegmentationModel


def check_onnx(model: SegmentationModel, folder: Path, *shapes: tuple[int, ...]) -> None:
    """ONNX Runtime gives the network's logits, to 1e-4 of their standard deviation, for inputs of these shapes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(zoo_seg.export(model, folder / "network.onnx").path)
    for shape in shapes:
        x = torch.randn(shape)
        with torch.inference_mode():
            expected = model(x)
        (found,) = session.run(None, {"x": x.numpy()})
        atol = 1e-4 * float(expected.std())
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=atol)
