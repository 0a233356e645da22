"""Numbers of the original projects' own networks, for the tests: `<model>.<project>[_<variant>].npz`.

    python benchmarks/peers/references.py --out tests/references --ssseg sssegmentation [NAME ...]

Needs the environment of this folder's README and, for the networks of SSSegmentation, a checkout of it (commit
eb1878c1: the package carries no config files). A network is built from the project's own config file, filled by the
rule of `../reference_checkpoint.py`, and run on `image_tensor` at several sizes. A file holds

    meta      JSON: model, project, config, changes (to it), versions, seed, num_classes, align_corners,
              size_divisor, parameters, aux_parameters (of them: used in training alone),
              scales     [[pattern, factor], ...]: entries that a pattern finds are multiplied after the filling
              sizes      one item a run: input [h, w], image_seed, output [classes, h, w], mean, std
              rounding   largest difference, in standard deviations, of the last run to the same in float64
              failed     [[h, w, message], ...]: sizes that the original does not take
    keys      JSON: [name, shape] of every entry of the state dict, in the project's own names
    logits_0, logits_1, ...   (1024,) float32 at `sample_positions(output, i)`

The logits are at the size of the input, as `encode_decode` of mmseg gives them (what the head gives, resized
bilinearly with the network's align_corners; a mix of masks and classes for Mask2Former). The input is
`image_tensor(h, w, image_seed)`. With a `size_divisor` it is padded with zeros at the right and the bottom to a
multiple, and the logits are cut.
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
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmseg_peer
import reference_checkpoint as reference

warnings.filterwarnings("ignore")
SAMPLES = 1024
# What the networks run on, by the first pattern that their name matches.
SIZES: dict[str, list[tuple[int, int]]] = {
    # Long and thin: the outer taps of a 3x3 kernel with dilation 36 meet a feature map of stride 8.
    "deeplab|.*_d6": [(48, 312), (305, 41)],
    "pidnet|ddrnet": [(128, 192), (200, 136), (113, 75)],
    # Several windows at every stage, hardly one of them full.
    ".*_(swin|convnext|mit)_": [(128, 160), (113, 75)],
    "": [(64, 96), (79, 65)],
}
# What the general rule lacks: damped ends of residual blocks that are not called bn3, and of sums of many branches;
# attention, gates and masks that do not saturate; queries that differ from one another.
SCALES: dict[str, list[tuple[str, float]]] = {
    "mask2former": [
        (r"(query_feat|query_embed)\.weight$", 16.0),
        (r"transformer_decoder\..*(attn\.out_proj|ffn\.layers\.1)\.weight$", 0.25),
        (r"predictor\.transformer_.*(out_proj|linear2)\.weight$", 0.25),
        (r"mask_embed\.(4|layers\.2)\.weight$", 0.125),
    ],
    ".*resnet18": [(r"layer\d\.\d\.bn2\.weight$", 0.25)],
    ".*hrnet": [(r"branches\.\d\.\d\.bn2\.weight$", 0.25), (r"fuse_layers\..*\.1\.weight$", 0.5)],
    "ocrnet": [
        (r"^(decode_head\.0\.conv_seg|auxiliary_decoder\.4)\.", 2.0**-4),
        (r"(key|query)_project\.1\.(bn|1)\.(weight|bias)$", 2.0**-5),
    ],
    "pidnet": [(r"(stem\.\d\.|layers\.\d\.)\d\.conv[23]\.bn\.weight$", 0.25), (r"pag_\d\.f_[ip]\.bn\.weight$", 0.25)],
    "ddrnet": [(r"\.conv[23]\.bn\.weight$", 0.25)],
}
# Config files that do not build the network whose weights were published: what is to be changed.
CHANGES: dict[str, dict[str, Any]] = {"semanticfpn_resnet101.mmseg": {"model.backbone.depth": 101}}
# <model>.<project>[_<variant>]: config file. mmseg_769 are the networks of Cityscapes at 769x769, which align corners.
NETWORKS = {
    "ddrnet_23.mmseg": "ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
    "ddrnet_23_slim.mmseg": "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
    "deeplabv3_resnet101_os16_mg124.mmseg": "deeplabv3/deeplabv3_r101-d16-mg124_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3_resnet101_os8.mmseg": "deeplabv3/deeplabv3_r101-d8_4xb4-80k_ade20k-512x512.py",
    "deeplabv3_resnet101b_os8.mmseg": "deeplabv3/deeplabv3_r101b-d8_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3_resnet18_os8.mmseg": "deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3_resnet18b_os8.mmseg": "deeplabv3/deeplabv3_r18b-d8_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3_resnet50_os8.mmseg": "deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512.py",
    "deeplabv3_resnet50_os8.mmseg_769": "deeplabv3/deeplabv3_r50-d8_4xb2-40k_cityscapes-769x769.py",
    "deeplabv3_resnet50b_os8.mmseg": "deeplabv3/deeplabv3_r50b-d8_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3plus_resnet101_os16_mg124.mmseg": (
        "deeplabv3plus/deeplabv3plus_r101-d16-mg124_4xb2-80k_cityscapes-512x1024.py"
    ),
    "deeplabv3plus_resnet101_os8.mmseg": "deeplabv3plus/deeplabv3plus_r101-d8_4xb4-160k_ade20k-512x512.py",
    "deeplabv3plus_resnet101b_os8.mmseg": "deeplabv3plus/deeplabv3plus_r101b-d8_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3plus_resnet18_os8.mmseg": "deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3plus_resnet18b_os8.mmseg": "deeplabv3plus/deeplabv3plus_r18b-d8_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3plus_resnet50_os8.mmseg": "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py",
    "deeplabv3plus_resnet50_os8.mmseg_769": "deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-769x769.py",
    "deeplabv3plus_resnet50b_os8.mmseg": "deeplabv3plus/deeplabv3plus_r50b-d8_4xb2-80k_cityscapes-512x1024.py",
    "fcn_hrnet_w18.mmseg": "hrnet/fcn_hr18_4xb4-80k_ade20k-512x512.py",
    "fcn_hrnet_w18_small.mmseg": "hrnet/fcn_hr18s_4xb4-80k_ade20k-512x512.py",
    "fcn_hrnet_w48.mmseg": "hrnet/fcn_hr48_4xb4-80k_ade20k-512x512.py",
    "fcn_resnet101_os16_d6.mmseg": "fcn/fcn-d6_r101-d16_4xb2-40k_cityscapes-512x1024.py",
    "fcn_resnet101_os8.mmseg": "fcn/fcn_r101-d8_4xb4-160k_ade20k-512x512.py",
    "fcn_resnet101b_os16_d6.mmseg": "fcn/fcn-d6_r101b-d16_4xb2-80k_cityscapes-512x1024.py",
    "fcn_resnet101b_os8.mmseg": "fcn/fcn_r101b-d8_4xb2-80k_cityscapes-512x1024.py",
    "fcn_resnet18_os8.mmseg": "fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    "fcn_resnet18b_os8.mmseg": "fcn/fcn_r18b-d8_4xb2-80k_cityscapes-512x1024.py",
    "fcn_resnet50_os16_d6.mmseg": "fcn/fcn-d6_r50-d16_4xb2-80k_cityscapes-512x1024.py",
    "fcn_resnet50_os16_d6.mmseg_769": "fcn/fcn-d6_r50-d16_4xb2-40k_cityscapes-769x769.py",
    "fcn_resnet50_os8.mmseg": "fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py",
    "fcn_resnet50_os8.mmseg_769": "fcn/fcn_r50-d8_4xb2-40k_cityscapes-769x769.py",
    "fcn_resnet50b_os16_d6.mmseg": "fcn/fcn-d6_r50b-d16_4xb2-80k_cityscapes-512x1024.py",
    "fcn_resnet50b_os8.mmseg": "fcn/fcn_r50b-d8_4xb2-80k_cityscapes-512x1024.py",
    "mask2former_resnet50.mmseg": "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
    "ocrnet_hrnet_w18.mmseg": "ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py",
    "ocrnet_hrnet_w18_small.mmseg": "ocrnet/ocrnet_hr18s_4xb4-80k_ade20k-512x512.py",
    "ocrnet_hrnet_w48.mmseg": "ocrnet/ocrnet_hr48_4xb4-80k_ade20k-512x512.py",
    "ocrnet_resnet101_os8.mmseg": "ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py",
    "pidnet_large.mmseg": "pidnet/pidnet-l_2xb6-120k_1024x1024-cityscapes.py",
    "pidnet_medium.mmseg": "pidnet/pidnet-m_2xb6-120k_1024x1024-cityscapes.py",
    "pidnet_small.mmseg": "pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py",
    "pspnet_resnet101_os8.mmseg": "pspnet/pspnet_r101-d8_4xb4-80k_ade20k-512x512.py",
    "pspnet_resnet101b_os8.mmseg": "pspnet/pspnet_r101b-d8_4xb2-80k_cityscapes-512x1024.py",
    "pspnet_resnet18_os8.mmseg": "pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    "pspnet_resnet18b_os8.mmseg": "pspnet/pspnet_r18b-d8_4xb2-80k_cityscapes-512x1024.py",
    "pspnet_resnet50_os32.mmseg": "pspnet/pspnet_r50-d32_4xb2-80k_cityscapes-512x1024.py",
    "pspnet_resnet50_os8.mmseg": "pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py",
    "pspnet_resnet50_os8.mmseg_769": "pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-769x769.py",
    "pspnet_resnet50b_os32.mmseg": "pspnet/pspnet_r50b-d32_4xb2-80k_cityscapes-512x1024.py",
    "pspnet_resnet50b_os8.mmseg": "pspnet/pspnet_r50b-d8_4xb2-80k_cityscapes-512x1024.py",
    "segformer_mit_b0.mmseg": "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "segformer_mit_b1.mmseg": "segformer/segformer_mit-b1_8xb2-160k_ade20k-512x512.py",
    "segformer_mit_b2.mmseg": "segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py",
    "segformer_mit_b3.mmseg": "segformer/segformer_mit-b3_8xb2-160k_ade20k-512x512.py",
    "segformer_mit_b4.mmseg": "segformer/segformer_mit-b4_8xb2-160k_ade20k-512x512.py",
    "segformer_mit_b5.mmseg": "segformer/segformer_mit-b5_8xb2-160k_ade20k-512x512.py",
    "semanticfpn_resnet101.mmseg": "sem_fpn/fpn_r101_4xb4-160k_ade20k-512x512.py",
    "semanticfpn_resnet50.mmseg": "sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py",
    "upernet_convnext_base.mmseg": "convnext/convnext-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
    "upernet_convnext_large.mmseg": "convnext/convnext-large_upernet_8xb2-amp-160k_ade20k-640x640.py",
    "upernet_convnext_small.mmseg": "convnext/convnext-small_upernet_8xb2-amp-160k_ade20k-512x512.py",
    "upernet_convnext_tiny.mmseg": "convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py",
    "upernet_convnext_xlarge.mmseg": "convnext/convnext-xlarge_upernet_8xb2-amp-160k_ade20k-640x640.py",
    "upernet_resnet101.mmseg": "upernet/upernet_r101_4xb4-80k_ade20k-512x512.py",
    "upernet_resnet18.mmseg": "upernet/upernet_r18_4xb4-80k_ade20k-512x512.py",
    "upernet_resnet50.mmseg": "upernet/upernet_r50_4xb4-80k_ade20k-512x512.py",
    "upernet_resnet50.mmseg_769": "upernet/upernet_r50_4xb2-40k_cityscapes-769x769.py",
    "upernet_swin_base.mmseg": "swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "upernet_swin_base_window12.mmseg": (
        "swin/swin-base-patch4-window12-in1k-384x384-pre_upernet_8xb2-160k_ade20k-512x512.py"
    ),
    "upernet_swin_large.mmseg": "swin/swin-large-patch4-window7-in22k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "upernet_swin_large_window12.mmseg": (
        "swin/swin-large-patch4-window12-in22k-384x384-pre_upernet_8xb2-160k_ade20k-512x512.py"
    ),
    "upernet_swin_small.mmseg": "swin/swin-small-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "upernet_swin_tiny.mmseg": "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "deeplabv3_resnet101_os16.ssseg": "deeplabv3/deeplabv3_resnet101os16_ade20k.py",
    "deeplabv3_resnet101_os8.ssseg": "deeplabv3/deeplabv3_resnet101os8_ade20k.py",
    "deeplabv3_resnet50_os16.ssseg": "deeplabv3/deeplabv3_resnet50os16_ade20k.py",
    "deeplabv3_resnet50_os8.ssseg": "deeplabv3/deeplabv3_resnet50os8_ade20k.py",
    "deeplabv3plus_resnet101_os16.ssseg": "deeplabv3plus/deeplabv3plus_resnet101os16_ade20k.py",
    "deeplabv3plus_resnet101_os8.ssseg": "deeplabv3plus/deeplabv3plus_resnet101os8_ade20k.py",
    "deeplabv3plus_resnet50_os16.ssseg": "deeplabv3plus/deeplabv3plus_resnet50os16_ade20k.py",
    "deeplabv3plus_resnet50_os8.ssseg": "deeplabv3plus/deeplabv3plus_resnet50os8_ade20k.py",
    "fcn_resnet101_os16.ssseg": "fcn/fcn_resnet101os16_ade20k.py",
    "fcn_resnet101_os8.ssseg": "fcn/fcn_resnet101os8_ade20k.py",
    "fcn_resnet50_os16.ssseg": "fcn/fcn_resnet50os16_ade20k.py",
    "fcn_resnet50_os8.ssseg": "fcn/fcn_resnet50os8_ade20k.py",
    "mask2former_swin_tiny.ssseg": "mask2former/mask2former_swintiny_ade20k.py",
    "ocrnet_hrnet_w18.ssseg": "ocrnet/ocrnet_hrnetv2w18_ade20k.py",
    "ocrnet_hrnet_w18_small.ssseg": "ocrnet/ocrnet_hrnetv2w18s_ade20k.py",
    "ocrnet_hrnet_w48.ssseg": "ocrnet/ocrnet_hrnetv2w48_ade20k.py",
    "ocrnet_resnet101_os8.ssseg": "ocrnet/ocrnet_resnet101os8_ade20k.py",
    "ocrnet_resnet50_os8.ssseg": "ocrnet/ocrnet_resnet50os8_ade20k.py",
    "pspnet_resnet101_os16.ssseg": "pspnet/pspnet_resnet101os16_ade20k.py",
    "pspnet_resnet101_os8.ssseg": "pspnet/pspnet_resnet101os8_ade20k.py",
    "pspnet_resnet50_os16.ssseg": "pspnet/pspnet_resnet50os16_ade20k.py",
    "pspnet_resnet50_os8.ssseg": "pspnet/pspnet_resnet50os8_ade20k.py",
    "segformer_mit_b0.ssseg": "segformer/segformer_mitb0_ade20k.py",
    "segformer_mit_b1.ssseg": "segformer/segformer_mitb1_ade20k.py",
    "segformer_mit_b2.ssseg": "segformer/segformer_mitb2_ade20k.py",
    "segformer_mit_b3.ssseg": "segformer/segformer_mitb3_ade20k.py",
    "segformer_mit_b4.ssseg": "segformer/segformer_mitb4_ade20k.py",
    "segformer_mit_b5.ssseg": "segformer/segformer_mitb5_ade20k.py",
    "semanticfpn_resnet101.ssseg": "semanticfpn/semanticfpn_resnet101os32_ade20k.py",
    "semanticfpn_resnet50.ssseg": "semanticfpn/semanticfpn_resnet50os32_ade20k.py",
    "upernet_convnext_base.ssseg": "convnext/upernet_convnextbase_ade20k.py",
    "upernet_convnext_large.ssseg": "convnext/upernet_convnextlarge21k_ade20k.py",
    "upernet_convnext_small.ssseg": "convnext/upernet_convnextsmall_ade20k.py",
    "upernet_convnext_tiny.ssseg": "convnext/upernet_convnexttiny_ade20k.py",
    "upernet_convnext_xlarge.ssseg": "convnext/upernet_convnextxlarge21k_ade20k.py",
    "upernet_resnet101_os16.ssseg": "upernet/upernet_resnet101os16_ade20k.py",
    "upernet_resnet101_os8.ssseg": "upernet/upernet_resnet101os8_ade20k.py",
    "upernet_resnet50_os16.ssseg": "upernet/upernet_resnet50os16_ade20k.py",
    "upernet_resnet50_os8.ssseg": "upernet/upernet_resnet50os8_ade20k.py",
    "upernet_swin_base_window12.ssseg": "swin/upernet_swinbase_ade20k.py",
    "upernet_swin_small.ssseg": "swin/upernet_swinsmall_ade20k.py",
    "upernet_swin_tiny.ssseg": "swin/upernet_swintiny_ade20k.py",
}
SSSEG_VERSION = "1.7.0+eb1878c1"


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


class Network(ABC):
    """A project's network: `logits` are those of a normalised image, at its size."""

    model: torch.nn.Module
    num_classes: int
    align_corners: bool
    size_divisor: int = 1

    @abstractmethod
    def logits(self, x: torch.Tensor) -> torch.Tensor: ...


class MMSegNetwork(Network):
    def __init__(self, config: str, changes: Mapping[str, Any] | None = None) -> None:
        from mmengine import Config, ConfigDict
        from mmengine.registry import init_default_scope
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        cfg = Config.fromfile(mmseg_peer.CONFIGS.parents[1] / config)
        init_default_scope("mmseg")
        cfg.merge_from_dict(dict(changes or {}))
        cfg = cfg.model.to_dict()
        self.size_divisor = (cfg.pop("data_preprocessor").get("test_cfg") or {}).get("size_divisor", 1)
        self.model = MODELS.build(ConfigDict(plain(cfg))).eval()
        head = self.model.decode_head
        head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
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


# Modules that are to be filled need no random start.
NO_INIT = {
    name: lambda tensor, *_, **__: tensor for name in ("kaiming_uniform_", "xavier_uniform_", "uniform_", "normal_")
}


def stub_fvcore() -> None:
    """SSSegmentation initialises parameters of Mask2Former with two functions of fvcore. They are filled here."""
    weight_init = types.ModuleType("fvcore.nn.weight_init")
    weight_init.c2_xavier_fill = weight_init.c2_msra_fill = lambda module: None  # type: ignore[attr-defined]
    nn = types.ModuleType("fvcore.nn")
    nn.weight_init = weight_init  # type: ignore[attr-defined]
    sys.modules |= {"fvcore": types.ModuleType("fvcore"), "fvcore.nn": nn, "fvcore.nn.weight_init": weight_init}


def run(network: Network, size: tuple[int, int], seed: int, dtype: torch.dtype) -> np.ndarray:
    """The logits (classes, h, w) of an image."""
    height, width = size
    x = torch.from_numpy(reference.image_tensor(height, width, seed)).to(dtype)
    x = F.pad(x, (0, -width % network.size_divisor, 0, -height % network.size_divisor))
    torch.set_default_dtype(dtype)  # tables that a forward pass makes
    cast = torch.Tensor.double if dtype == torch.float64 else torch.Tensor.float
    try:
        with torch.no_grad(), mock.patch.object(torch.Tensor, "float", cast):
            return network.logits(x)[0, :, :height, :width].numpy()
    finally:
        torch.set_default_dtype(torch.float32)


def fill(network: Network, scales: Sequence[tuple[str, float]]) -> list[reference.Entry]:
    """Give the network the parameters of the rule. Its entries."""
    own = network.model.state_dict()
    entries = reference.entries_of(own)
    state_dict = reference.filled_state_dict(entries, scales=scales)
    for name, value in state_dict.items():
        if not value.is_floating_point() and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, own[name]), f"{name} is a constant of the network"
    network.model.load_state_dict(state_dict, strict=True)
    return entries


def make(name: str) -> dict[str, Any]:
    """The arrays of one file, `<model>.<project>[_<variant>]`."""
    model, _, tag = name.partition(".")
    project = tag.partition("_")[0]
    network: Network
    with mock.patch.multiple(torch.nn.init, **NO_INIT):
        if project == "mmseg":
            network = MMSegNetwork(NETWORKS[name], CHANGES.get(name))
            version, auxiliary = mmseg_peer.VERSIONS["mmseg"], "auxiliary_head"
        else:
            network = SSSegNetwork(NETWORKS[name])
            version, auxiliary = SSSEG_VERSION, "auxiliary_decoder"
    scales = [scale for pattern, items in SCALES.items() if re.match(pattern, name) for scale in items]
    entries = fill(network, scales)
    counts = {key: value.numel() for key, value in network.model.named_parameters()}
    meta: dict[str, Any] = {
        "model": model,
        "project": project,
        "config": NETWORKS[name],
        "changes": CHANGES.get(name, {}),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, project: version},
        "seed": 0,
        "scales": scales,
        "num_classes": network.num_classes,
        "align_corners": network.align_corners,
        "size_divisor": network.size_divisor,
        "parameters": sum(counts.values()),
        "aux_parameters": sum(count for key, count in counts.items() if key.startswith(auxiliary)),
        "sizes": [],
        "failed": [],
    }
    results = []
    for seed, size in enumerate(next(sizes for pattern, sizes in SIZES.items() if re.match(pattern, name))):
        try:
            results.append((seed, size, run(network, size, seed, torch.float32)))
        except Exception as error:
            meta["failed"].append([*size, f"{type(error).__name__}: {error}"[:200]])
    arrays: dict[str, Any] = {}
    for index, (seed, size, logits) in enumerate(results):
        mean, std = float(logits.mean(dtype=np.float64)), float(logits.std(dtype=np.float64))
        result = {"input": size, "image_seed": seed, "output": logits.shape}
        meta["sizes"].append({**result, "mean": mean, "std": std})
        arrays[f"logits_{index}"] = logits.reshape(-1)[sample_positions(logits.shape, index)]
    network.model.double()
    meta["rounding"] = float(np.abs(logits - run(network, size, seed, torch.float64)).max() / std)
    keys = [(key, shape) for key, shape, _ in entries]
    return {
        "meta": np.bytes_(json.dumps(meta)),
        "keys": np.bytes_(json.dumps(keys, separators=(",", ":"))),
        **arrays,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the reference files of networks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="file names without .npz; all that can be, by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ssseg", type=Path, help="a checkout of SSSegmentation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the files that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.ssseg:
        sys.path.insert(0, str(arguments.ssseg.resolve()))
        stub_fvcore()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or NETWORKS:
        path = arguments.out / f"{name}.npz"
        if (arguments.keep and path.exists()) or (".ssseg" in name and not arguments.ssseg):
            continue
        arrays = make(name)
        np.savez_compressed(path, **arrays)
        meta = json.loads(arrays["meta"])
        rounding, millions = meta["rounding"], meta["parameters"] / 1e6
        kilobytes = path.stat().st_size / 1e3
        print(f"{path.name}: {kilobytes:.1f} kB, {millions:.2f} M, rounding {rounding:.1e}", *meta["failed"])
        for size in meta["sizes"]:
            print(f"    {size['input']} mean {size['mean']:.3g} std {size['std']:.3g}")
        sys.stdout.flush()
        gc.collect()


if __name__ == "__main__":
    main()
