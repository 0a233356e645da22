"""Numbers of the original projects' own networks, for the tests: `<model>.<project>[_<variant>].npz`.

    python benchmarks/peers/references.py --out tests/references --ssseg sssegmentation [NAME ...]

Needs the environment of this folder's README and, for the networks of SSSegmentation, a checkout of it (commit
eb1878c1: the package carries no config files). A network is built from the project's own config file, filled by the
rule of `../reference_checkpoint.py`, and run on `image_tensor` at several sizes. A file holds

    meta      JSON: name, project, config, versions, seed, num_classes, align_corners, size_divisor,
              parameters, aux_parameters (of them: used in training alone),
              scales     [[pattern, factor], ...]: entries whose name the pattern finds are multiplied, after the filling
              sizes      one item a run: input [h, w], output [classes, h, w], mean, std, rounding
              failed     [[h, w, message], ...]: sizes that the original does not take
    keys      JSON: [name, shape] of every entry of the state dict, in the project's own names
    logits_0, logits_1, ...   (1024,) float32 at `sample_positions(output, i)`

The logits are at the size of the input, as `encode_decode` of mmseg gives them (what the head gives, resized
bilinearly with the network's align_corners; a mix of masks and classes for Mask2Former). The input of image i is
`image_tensor(h, w, seed=i)`. With a `size_divisor` it is padded with zeros at the right and the bottom to a multiple,
and the logits are cut. `rounding` is the largest difference, in standard deviations, to the same run in float64.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import re
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmseg_peer
import reference_checkpoint as reference

SAMPLES = 1024
Size = tuple[int, int]
SIZES: Sequence[Size] = [(64, 96), (79, 65)]
# Long and thin: the outer taps of a 3x3 kernel with dilation 36 meet a feature map of stride 8.
LONG: Sequence[Size] = [(48, 312), (305, 41)]
WIDE: Sequence[Size] = [(128, 160), (113, 75)]  # several windows of every stage, none of them full

# name: (config, sizes)
MMSEG: dict[str, tuple[str, Sequence[Size]]] = {
    "deeplabv3plus_resnet50_os8": ("deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py", LONG),
    "segformer_mit_b0": ("segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py", WIDE),
    "pidnet_small": ("pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py", WIDE),
    "mask2former_resnet50": ("mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py", SIZES),
    "fcn_resnet18_os8": ("fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py", SIZES),
    "pspnet_resnet50b_os8": ("pspnet/pspnet_r50b-d8_4xb2-80k_cityscapes-512x1024.py", SIZES),
    "pspnet_resnet50_os8@769": ("pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-769x769.py", SIZES),
    "deeplabv3_resnet101_os16_mg124": ("deeplabv3/deeplabv3_r101-d16-mg124_4xb2-80k_cityscapes-512x1024.py", LONG),
    "fcn_resnet50_os8": ("fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py", SIZES),
    "fcn_resnet50_os16_d6": ("fcn/fcn-d6_r50-d16_4xb2-80k_cityscapes-512x1024.py", LONG),
}
SSSEG: dict[str, tuple[str, Sequence[Size]]] = {
    "deeplabv3plus_resnet50_os8": ("deeplabv3plus/deeplabv3plus_resnet50os8_ade20k.py", LONG),
    "segformer_mit_b0": ("segformer/segformer_mitb0_ade20k.py", WIDE),
    "mask2former_swin_tiny": ("mask2former/mask2former_swintiny_ade20k.py", WIDE),
}
# Damping that the general rule lacks: entries of a family to multiply, so that the sums of a long chain stay in range.
SCALES: dict[str, list[tuple[str, float]]] = {}
AUXILIARY = {"mmseg": r"auxiliary_head\.", "ssseg": r"auxiliary_decoder\."}


def sample_positions(shape: Sequence[int], number: int) -> np.ndarray:
    """Where the logits of image `number` are taken from: positions in the flattened (classes, h, w)."""
    return np.random.Generator(np.random.PCG64([13, number])).integers(0, int(np.prod(shape)), SAMPLES)


def plain(config: Any) -> Any:
    """A config without pretrained weights, and with BatchNorm on one device."""
    if isinstance(config, dict):
        dropped = ("pretrained", "init_cfg")
        config = {key: plain(value) for key, value in config.items() if key not in dropped}
        if config.get("type") == "SyncBN":
            config["type"] = "BN"
        return config
    return [plain(item) for item in config] if isinstance(config, list | tuple) else config


class Network:
    """A project's network: `logits` are those of a normalised image, at its size."""

    model: torch.nn.Module
    num_classes: int
    align_corners: bool
    size_divisor: int = 1

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class MMSegNetwork(Network):
    def __init__(self, config: str) -> None:
        from mmengine import Config, ConfigDict
        from mmengine.registry import init_default_scope
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        cfg = Config.fromfile(mmseg_peer.CONFIGS.parents[1] / config)
        init_default_scope("mmseg")
        cfg = cfg.model.to_dict()
        self.size_divisor = (cfg.pop("data_preprocessor").get("test_cfg") or {}).get("size_divisor", 1)
        self.model = MODELS.build(ConfigDict(plain(cfg))).eval()
        head = self.model.decode_head[-1] if isinstance(self.model.decode_head, torch.nn.ModuleList) else self.model.decode_head
        self.num_classes, self.align_corners = head.num_classes, head.align_corners

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        meta = {"img_shape": x.shape[2:], "ori_shape": x.shape[2:], "pad_shape": x.shape[2:]}
        return self.model.encode_decode(x, [meta])


class SSSegNetwork(Network):
    def __init__(self, config: str) -> None:
        from ssseg.modules import BuildSegmentor

        for name in [name for name in sys.modules if name.startswith("ssseg.configs")]:
            del sys.modules[name]  # config files change what they share
        module = importlib.import_module("ssseg.configs." + config.removesuffix(".py").replace("/", "."))
        cfg = copy.deepcopy(dict(module.SEGMENTOR_CFG))
        cfg["backbone"]["pretrained"] = False
        self.model = BuildSegmentor(segmentor_cfg=cfg, mode="TEST").eval()
        self.num_classes, self.align_corners = cfg["num_classes"], cfg["align_corners"]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        from ssseg.modules import SSSegInputStructure

        logits = self.model(SSSegInputStructure(images=x, mode="TEST")).seg_logits
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=self.align_corners)


def stub_fvcore() -> None:
    """SSSegmentation initialises parameters of Mask2Former with two functions of fvcore. They are filled here."""
    weight_init = types.ModuleType("fvcore.nn.weight_init")
    weight_init.c2_xavier_fill = weight_init.c2_msra_fill = lambda module: None  # type: ignore[attr-defined]
    nn = types.ModuleType("fvcore.nn")
    nn.weight_init = weight_init  # type: ignore[attr-defined]
    sys.modules |= {"fvcore": types.ModuleType("fvcore"), "fvcore.nn": nn, "fvcore.nn.weight_init": weight_init}


def run(network: Network, size: Size, number: int, dtype: torch.dtype) -> np.ndarray:
    """The logits (classes, h, w) of image `number`."""
    x = torch.from_numpy(reference.image_tensor(*size, seed=number)).to(dtype)
    height, width = size
    divisor = network.size_divisor
    x = F.pad(x, (0, -width % divisor, 0, -height % divisor))
    torch.set_default_dtype(dtype)  # tables that a forward pass makes
    cast = torch.Tensor.double if dtype == torch.float64 else torch.Tensor.float
    try:
        with torch.no_grad(), mock.patch.object(torch.Tensor, "float", cast):
            return network.logits(x)[0, :, :height, :width].numpy()
    finally:
        torch.set_default_dtype(torch.float32)


def make(project: str, name: str, config: str, sizes: Sequence[Size], build: Callable[[str], Network]) -> dict[str, Any]:
    """The arrays of one file."""
    network = build(config)
    entries = reference.entries_of(network.model.state_dict())
    scales = [item for family, items in SCALES.items() if re.match(family, f"{name}.{project}") for item in items]
    state_dict = reference.filled_state_dict(entries, scales=scales)
    own = network.model.state_dict()
    for key, value in state_dict.items():
        if not value.is_floating_point():
            assert torch.equal(value, own[key]), f"{key} is a constant of the network"
    network.model.load_state_dict(state_dict, strict=True)
    del state_dict, own
    counts = {key: value.numel() for key, value in network.model.named_parameters()}
    meta: dict[str, Any] = {
        "name": name,
        "project": project,
        "config": config,
        "versions": {"torch": torch.__version__, "numpy": np.__version__, project: PROJECT_VERSION[project]},
        "seed": 0,
        "scales": scales,
        "num_classes": network.num_classes,
        "align_corners": network.align_corners,
        "size_divisor": network.size_divisor,
        "parameters": sum(counts.values()),
        "aux_parameters": sum(count for key, count in counts.items() if re.match(AUXILIARY[project], key)),
        "sizes": [],
        "failed": [],
    }
    arrays: dict[str, Any] = {}
    results = []
    for number, size in enumerate(sizes):
        try:
            results.append((number, size, run(network, size, number, torch.float32)))
        except Exception as error:
            meta["failed"].append([*size, f"{type(error).__name__}: {error}"[:200]])
    network.model.double()
    for index, (number, size, logits) in enumerate(results):
        deviation = float(logits.std(dtype=np.float64))
        exact = run(network, size, number, torch.float64)
        meta["sizes"].append(
            {
                "input": size,
                "image_seed": number,
                "output": logits.shape,
                "mean": float(logits.mean(dtype=np.float64)),
                "std": deviation,
                "rounding": float(np.abs(logits - exact).max() / deviation),
            }
        )
        arrays[f"logits_{index}"] = logits.reshape(-1)[sample_positions(logits.shape, index)]
    keys = [(key, shape) for key, shape, _ in entries]
    return {
        "meta": np.bytes_(json.dumps(meta)),
        "keys": np.bytes_(json.dumps(keys, separators=(",", ":"))),
        **arrays,
    }


PROJECT_VERSION = {"mmseg": mmseg_peer.VERSIONS["mmseg"], "ssseg": "1.7.0+eb1878c1"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the reference files of networks.")
    parser.add_argument("names", nargs="*", help="file names without .npz; all by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ssseg", type=Path, help="a checkout of SSSegmentation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the files that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.ssseg:
        sys.path.insert(0, str(arguments.ssseg.resolve()))
        stub_fvcore()
    projects = {"mmseg": (MMSEG, MMSegNetwork)}
    if arguments.ssseg:
        projects["ssseg"] = (SSSEG, SSSegNetwork)  # type: ignore[assignment]
    arguments.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for project, (table, build) in projects.items():
        for name, (config, sizes) in table.items():
            model, _, variant = name.partition("@")
            stem = f"{model}.{project}" + (f"_{variant}" if variant else "")
            path = arguments.out / f"{stem}.npz"
            if (arguments.names and stem not in arguments.names) or (arguments.keep and path.exists()):
                continue
            arrays = make(project, model, config, sizes, build)
            np.savez_compressed(path, **arrays)
            meta = json.loads(arrays["meta"])
            shown = [
                f"{'x'.join(map(str, s['input']))} mean {s['mean']:.3g} std {s['std']:.3g} rounding {s['rounding']:.1e}"
                for s in meta["sizes"]
            ]
            total += path.stat().st_size
            print(f"{path.name}: {path.stat().st_size / 1e3:.1f} kB, {meta['parameters'] / 1e6:.2f} M;", "; ".join(shown), *meta["failed"], flush=True)
            gc.collect()
    print(f"{total / 1e3:.0f} kB in all")


if __name__ == "__main__":
    main()
