"""mmsegmentation's own networks and its own inference, on one image. Needs the environment of this folder's README.

    python benchmarks/peers/mmseg_peer.py --checkpoint fpn_r50.pth --image street.jpg --mode whole --out result.npz
    python benchmarks/peers/mmseg_peer.py --checkpoint X --image Y --scales 0.5 1.0 1.5 --flip --out result.npz

Family, depth and number of classes are read off the checkpoint. `result.npz` holds `mask` (uint8, the image's size),
`logits` (classes, height, width; float32; averaged probabilities with several scales or flip) and `meta` (JSON).
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import resource
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


class _NoCompiledOperators(types.ModuleType):
    """mmcv-lite has no compiled operators, but mmseg imports their Python side. None of these networks calls one."""

    def __getattr__(self, attribute: str) -> type:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})


_stub = _NoCompiledOperators("mmcv._ext")
_stub.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
sys.modules.setdefault("mmcv._ext", _stub)

import mmengine  # noqa: E402
import mmseg  # noqa: E402
from mmengine import Config  # noqa: E402
from mmengine.dataset import Compose  # noqa: E402
from mmseg.apis import inference_model, init_model  # noqa: E402
from mmseg.models.segmentors import SegTTAModel  # noqa: E402

CONFIGS = Path(mmseg.__file__).parent / ".mim" / "configs" / "_base_" / "models"
BASE = {"fpn": "fpn_r50.py", "pspnet": "pspnet_r50-d8.py", "fcn": "fcn_r50-d8.py"}
TEST_SCALE = (2048, 512)
VERSIONS = {
    "mmseg": mmseg.__version__,
    "mmengine": mmengine.__version__,
    "mmcv": sys.modules["mmcv"].__version__,
    "opencv": sys.modules["cv2"].__version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
}


def config(
    family: str,
    num_classes: int,
    depth: int = 50,
    *,
    mode: str = "whole",
    crop: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    test_scale: Sequence[int] = TEST_SCALE,
) -> Config:
    """mmseg's own base config with these classes, test mode and test pipeline."""
    cfg = Config.fromfile(CONFIGS / BASE[family])
    cfg.model.pretrained = None
    cfg.model.backbone.depth = depth
    cfg.model.decode_head.num_classes = num_classes
    if "auxiliary_head" in cfg.model:
        cfg.model.auxiliary_head.num_classes = num_classes
    cfg.model.test_cfg = {"mode": mode}
    if mode == "slide":
        cfg.model.test_cfg.update(crop_size=tuple(crop or ()), stride=tuple(stride or ()))
    cfg.default_scope = "mmseg"
    cfg.test_pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": tuple(test_scale), "keep_ratio": True},
        {"type": "PackSegInputs"},
    ]
    return cfg


def describe(state_dict: Mapping[str, torch.Tensor]) -> tuple[str, int, int]:
    """Family, number of classes and depth of a checkpoint in mmseg's names."""
    if any(name.startswith("neck.") for name in state_dict):
        family = "fpn"
    else:
        family = "pspnet" if any("psp_modules" in name for name in state_dict) else "fcn"
    depth = 101 if any(name.startswith("backbone.layer3.22.") for name in state_dict) else 50
    return family, state_dict["decode_head.conv_seg.weight"].shape[0], depth


def build(family: str, num_classes: int, depth: int = 50, **options: Any) -> torch.nn.Module:
    """mmseg's network with its random values: its `state_dict()` has the names and shapes of a checkpoint."""
    return init_model(config(family, num_classes, depth, **options), None, device="cpu")


def load(checkpoint: str | Path, **options: Any) -> torch.nn.Module:
    """mmseg's network with a checkpoint's values, by mmseg's own `init_model`; it must fit exactly."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state_dict = content.get("state_dict", content)
    model = init_model(config(*describe(state_dict), **options), str(checkpoint), device="cpu")
    model.load_state_dict(state_dict, strict=True)  # init_model itself only logs a mismatch
    return model


def _augmented(image: np.ndarray, resizes: Sequence[Mapping[str, Any]], flip: bool) -> dict[str, Any]:
    """The image through mmseg's TestTimeAug: for every resize plain, then flipped."""
    flips = [{"type": "RandomFlip", "prob": p, "direction": "horizontal"} for p in ((0.0, 1.0) if flip else (0.0,))]
    steps = [[{"type": "Resize", "keep_ratio": True, **r} for r in resizes], flips, [{"type": "PackSegInputs"}]]
    packed = Compose([{"type": "LoadImageFromNDArray"}, {"type": "TestTimeAug", "transforms": steps}])({"img": image})
    return {key: [[item] for item in values] for key, values in packed.items()}


def predict(
    model: torch.nn.Module,
    image: np.ndarray,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    test_scale: Sequence[int] = TEST_SCALE,
    scale_rule: str = "0.x",
) -> dict[str, Any]:
    """One BGR uint8 image.

    One scale without flip: `inference_model`; `logits` are its `seg_logits`, at the image's size.
    Otherwise `SegTTAModel`, mmseg's average of probabilities; `logits` are these probabilities. With the "0.x" rule
    (the published numbers) scale r resizes the image into (int(W0 * r), int(H0 * r)), (W0, H0) the test scale; with
    "1.x" by r itself.
    """
    if tuple(scales) == (1.0,) and not flip:
        result = inference_model(model, image)
        return {"logits": result.seg_logits.data.numpy(), "mask": result.pred_sem_seg.data[0].numpy().astype(np.uint8)}
    if scale_rule == "0.x":
        resizes = [{"scale": (int(test_scale[0] * r), int(test_scale[1] * r))} for r in scales]
    else:
        resizes = [{"scale_factor": float(r)} for r in scales]
    recorded = []
    original = model.test_step

    def recording(data: Any) -> Any:
        recorded.append(original(data))
        return recorded[-1]

    model.test_step = recording  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            merged = SegTTAModel(module=model).test_step(_augmented(image, resizes, flip))[0]
    finally:
        del model.test_step
    # merge_preds keeps only the class map: its average once more, in its own order
    probabilities = sum(samples[0].seg_logits.data.softmax(dim=0) for samples in recorded) / len(recorded)
    mask = merged.pred_sem_seg.data[0].numpy().astype(np.uint8)
    assert np.array_equal(mask, probabilities.argmax(dim=0).numpy())
    return {
        "logits": probabilities.numpy(),
        "mask": mask,
        "sizes": [list(samples[0].img_shape) for samples in recorded],
        "largest_logit": max(float(samples[0].seg_logits.data.abs().max()) for samples in recorded),
    }


def main() -> None:
    import cv2

    parser = argparse.ArgumentParser(description="mmsegmentation on one image.")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--out", help=".npz to write")
    parser.add_argument("--mode", choices=("whole", "slide"), default="whole")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), default=(512, 512))
    parser.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"), default=(341, 341))
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--test-scale", type=int, nargs=2, metavar=("W", "H"), default=TEST_SCALE)
    parser.add_argument("--scale-rule", choices=("0.x", "1.x"), default="0.x", help="what a scale is relative to")
    parser.add_argument("--repeat", type=int, default=1, help="times to run; the seconds of each run are printed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    started = time.perf_counter()
    model = load(a.checkpoint, mode=a.mode, crop=a.crop, stride=a.stride, test_scale=a.test_scale)
    loaded = time.perf_counter() - started
    image = cv2.imread(a.image)
    options = {"scales": a.scales, "flip": a.flip, "test_scale": a.test_scale, "scale_rule": a.scale_rule}
    seconds, cpu_seconds = [], []  # far more wall time than cpu time / threads: the machine was busy
    for _ in range(a.repeat):
        started, started_cpu = time.perf_counter(), time.process_time()
        result = predict(model, image, **options)
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - started_cpu)
    meta = {"load_seconds": loaded, "seconds": seconds, "cpu_seconds": cpu_seconds, **vars(a), **VERSIONS}
    meta["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(meta))
    if a.out:
        np.savez_compressed(a.out, logits=result["logits"], mask=result["mask"], meta=json.dumps(meta))


if __name__ == "__main__":
    main()
