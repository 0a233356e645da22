"""A family and a backbone declared outside of the package take every road: nothing in it knows them by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.drawn import draw_folder
from torch import Tensor, nn

import zoo_seg
from zoo_seg.backbones import registry as backbones
from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.staged import StagedBackbone
from zoo_seg.cli import main
from zoo_seg.errors import CheckpointError
from zoo_seg.families import registry as families
from zoo_seg.families.fcn import aux_head
from zoo_seg.families.registry import Family, Heads, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.blocks import ConvNormAct

ID = "linear_tiny.shapes_ssseg"


class TinyBackbone(StagedBackbone):
    """Three strided convolutions."""

    def __init__(
        self, *, output_stride: int | None = None, in_chans: int = 3, levels: int | None = None, width: int = 8
    ) -> None:
        super().__init__((width, 2 * width, 4 * width), (2, 4, 8), levels)
        widths = (in_chans, width, 2 * width, 4 * width)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))

    def chain(self) -> list[list[nn.Module]]:
        return [[conv, nn.ReLU()] for conv in self.convs]


class LinearHead(nn.Module):
    level = -1

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int) -> None:
        super().__init__()
        self.reduce = ConvNormAct(in_channels[-1], channels, 1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.reduce(features[-1]))


@dataclass(frozen=True)
class LinearOptions:
    channels: int = 16
    auxiliary: bool = True


def build(channels: Sequence[int], num_classes: int, options: LinearOptions, *, align_corners: bool) -> Heads:
    aux = [aux_head(channels, num_classes, 4)] if options.auxiliary else []
    return Heads(LinearHead(channels, num_classes, options.channels), aux)


def ssseg(options: LinearOptions) -> KeyMap:
    return KeyMap(
        (
            ("decoder.0.", "head.reduce.conv."),
            ("decoder.1.", "head.reduce.norm."),
            ("decoder.3.", "head.classifier."),
            ("auxiliary_decoder.0.", "aux_heads.0.convs.0.conv."),
            ("auxiliary_decoder.1.", "aux_heads.0.convs.0.norm."),
            ("auxiliary_decoder.4.", "aux_heads.0.classifier."),
            ("memory.", None),
        )
    )


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The family, the backbone and a record of weights under another project's names; yields the weight file."""
    backbones.list_backbones()
    for name in families.list_families():  # all are imported, so that the registry is whole again afterwards
        families.find_family(name)
    for registry in (backbones, families):
        monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    create = lambda *, pretrained=False, **options: TinyBackbone(**options)  # noqa: E731
    register_backbone("tiny", create, {"ssseg": KeyMap((("stages.{}.", "convs.{}."),))})
    register_family(
        Family(
            name="linear",
            title="Linear",
            paper=None,
            options=LinearOptions,
            build=build,
            levels=2,
            key_maps={"ssseg": ssseg},
        )
    )
    torch.manual_seed(0)
    made = zoo_seg.build_model("linear", "tiny", num_classes=3)
    theirs = {"memory.bank": torch.zeros(3)}
    names = ssseg(LinearOptions())
    for name, tensor in made.network.state_dict().items():
        original = name.replace("backbone.convs.", "backbone_net.stages.")
        theirs[names.original(name) or original] = tensor
    folder = tmp_path / "mirror"
    folder.mkdir()
    torch.save({"model": theirs}, folder / "linear_shapes.pth")
    manifest = {
        "schema_version": 2,
        "datasets": {
            "shapes": {
                "title": "Shapes",
                "url": "https://zoo.invalid/shapes",
                "licence": None,
                "ignore_index": 255,
                "classes": ["ground", "wall", "sky"],
                "palette": [[0, 0, 0], [200, 0, 0], [0, 0, 200]],
            }
        },
        "models": {
            "linear_tiny": {"title": "Linear on Tiny", "architecture": {"family": "linear", "backbone": "tiny"}}
        },
        "weights": {
            ID: {
                "dataset": "shapes",
                "source": "ssseg",
                "parameters": sum(each.numel() for each in made.parameters()),
                "files": [{"url": "https://zoo.invalid/linear_shapes.pth"}],
                "metrics": [],
                "recipe": {
                    "train_split": "train",
                    "crop": [48, 64],
                    "batch_size": 2,
                    "epochs": 1,
                    "iterations": None,
                    "optimizer": "SGD",
                    "lr": 0.01,
                    "schedule": "poly",
                },
                "preprocess": {"mean": [120, 120, 120], "std": [60, 60, 60], "resize": None},
                "provenance": {"config_url": None, "log_url": None},
                "test": {"mode": "slide", "crop": [32, 32], "stride": [16, 16]},
            }
        },
    }
    (tmp_path / "zoo.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(tmp_path / "zoo.json"))
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(folder))
    return folder / "linear_shapes.pth"


IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def test_it_is_listed_built_converted_and_predicts_as_its_record_says(
    outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list"]) == 0
    assert main(["info", ID]) == 0
    told = capsys.readouterr().out
    assert ID in told
    assert "linear on tiny" in told
    model = zoo_seg.linear_tiny("shapes")
    assert model.info.test.mode == "slide"
    assert model.weights is not None
    mask = model.predict(IMAGE).mask
    assert np.array_equal(mask, model.predict(IMAGE, mode="slide", crop=(32, 32), stride=(16, 16)).mask)
    x = torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        assert torch.equal(zoo_seg.create_model("linear_tiny", outside)(x), model(x))
    assert zoo_seg.linear_tiny("shapes", num_classes=5)(x).shape == (1, 5, 40, 56)


def test_what_does_not_belong_to_it_is_an_error(outside: Path, tmp_path: Path) -> None:
    tensors = torch.load(outside)["model"]
    torch.save({"model": {**tensors, "decoder.9.weight": torch.zeros(1)}}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"belong to no linear on tiny, such as decoder\.9\.weight"):
        zoo_seg.create_model("linear_tiny", tmp_path / "more.pth")
    torch.save({"model": {**tensors, "module.decoder.3.bias": torch.zeros(3)}}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.3\.bias' .* are both"):
        zoo_seg.create_model("linear_tiny", tmp_path / "two.pth")
    del tensors["decoder.1.running_mean"]
    torch.save({"model": tensors}, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.1\.running_mean +- +16"):  # in the file's own words
        zoo_seg.create_model("linear_tiny", tmp_path / "less.pth")


def test_it_is_saved_with_all_its_options_and_a_card(outside: Path, tmp_path: Path) -> None:
    model = zoo_seg.build_model("linear", "tiny", num_classes=3, channels=6, auxiliary=False).eval()
    model.save_pretrained(tmp_path / "net")
    again = zoo_seg.from_pretrained(tmp_path / "net")
    assert again.info.architecture is not None
    assert again.info.architecture.options == {"channels": 6, "auxiliary": False}
    assert np.array_equal(again.predict(IMAGE).mask, model.predict(IMAGE).mask)
    assert "# Linear on tiny" in (tmp_path / "net" / "README.md").read_text()


@pytest.mark.slow
def test_it_is_trained_and_exported(outside: Path, tmp_path: Path) -> None:
    draw_folder(tmp_path / "data")
    options: dict[str, Any] = {"epochs": 1, "batch_size": 2, "crop_size": (48, 64), "workers": 0, "progress": False}
    model = zoo_seg.finetune(tmp_path / "data", "linear_tiny", "shapes", out=tmp_path / "run", **options)
    assert model.info.started_from == ID
    zoo_seg.export(model, tmp_path / "linear.onnx")
    exported = zoo_seg.from_exported(tmp_path / "linear.onnx")
    agreement = exported.predict(IMAGE, mode="whole").mask == model.predict(IMAGE, mode="whole").mask
    assert agreement.mean() > 0.999
