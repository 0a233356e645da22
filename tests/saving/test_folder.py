"""A network in a folder: `save_pretrained`, `from_pretrained`, `--weights DIR`, and folders that are none."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Zoo
from helpers.disk import largest_file
from helpers.reference import image_tensor
from PIL import Image
from safetensors.torch import load_file, save_file

from zoo_seg import SegmentationModel, build_model, create_model, from_pretrained, get_weights
from zoo_seg.cli import main
from zoo_seg.errors import CheckpointError, ManifestError, OptionError
from zoo_seg.manifest import Metric, Preprocess, Recipe, Resize, TestOptions
from zoo_seg.model import SegmentationModel as Model

BACKBONE = "mobilenetv3_small_050"
RECIPE = Recipe("train", (48, 64), 4, 2, 6, "AdamW", 0.01, "poly", weight_decay=0.01)
METRIC = Metric("mIoU", 43.21, "val", TestOptions(), "reproduced")


def small(family: str = "semanticfpn", **options: Any) -> SegmentationModel:
    """Random values, but statistics that are not those of a new network."""
    torch.manual_seed(0)
    model = build_model(
        family, BACKBONE, 3, **{"channels": 8, "classes": ("sky", "sea", "sand"), "palette": COLOURS, **options}
    )
    model.train()(torch.randn(2, model.in_chans, 64, 64))
    return model.eval()


COLOURS = ((1, 2, 3), (40, 50, 60), (200, 210, 220))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with everything in it."""
    model = small()
    model.preprocess = Preprocess((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), Resize(32, 128))
    model.protocol, model.recipe = "mmseg", RECIPE
    model.save_pretrained(tmp_path / "net", ignore_index=9, metrics=[METRIC], started_from="mine.pth", dataset="Beach")
    return tmp_path / "net"


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("fcn", {"output_stride": 16}),
        ("fcn", {"aux_channels": 4}),
        ("pspnet", {}),
        ("semanticfpn", {"neck": "conv"}),
        ("semanticfpn", {"in_chans": 1}),
        ("semanticfpn", {"in_chans": 4}),
        ("semanticfpn", {"in_chans": 16}),
        ("semanticfpn", {"channels": 24}),
    ],
    ids=str,
)
def test_a_network_comes_back(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = small(family, **options)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    x = torch.randn(1, model.in_chans, 50, 70)
    with torch.inference_mode():
        torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-5)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert not again.training
    assert again.architecture == model.architecture
    assert (again.in_chans, again.preprocess) == (model.in_chans, model.preprocess)


def test_all_that_is_known_comes_back(folder: Path) -> None:
    model = from_pretrained(str(folder))
    assert (model.classes, model.palette) == (("sky", "sea", "sand"), COLOURS)
    assert model.preprocess == Preprocess((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), Resize(32, 128))
    assert (model.protocol, model.recipe, model.metrics) == ("mmseg", RECIPE, (METRIC,))
    config = json.loads((folder / "config.json").read_text())
    facts = {"ignore_index": 9, "started_from": "mine.pth", "dataset": "Beach", "in_chans": 3, "schema_version": 2}
    assert all(config[name] == value for name, value in facts.items())
    card = (folder / "README.md").read_text()
    assert all(words in card for words in ("43.21", "sand", "Beach", "mine.pth", "library_name: zoo_seg"))


def test_a_folder_of_the_first_version_is_read(folder: Path) -> None:
    """Before options travelled whole, an architecture knew the width alone; shapes told the rest."""
    expected = from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    architecture = {"family": "semanticfpn", "backbone": BACKBONE, "output_stride": None, "channels": 8, "paper": None}
    first = {
        name: config[name] for name in ("in_chans", "classes", "palette", "ignore_index", "preprocess", "protocol")
    }
    metric = {**config["metrics"][0]}
    metric["protocol"] = {name: metric["test"][name] for name in ("mode", "scales", "flip")}
    del metric["test"]
    licences = {"code_licence": "MIT", "weights_licence": None, "data_licence": None}
    first |= {"schema_version": 1, "library": "zoo_seg 0.1.0", "architecture": architecture, "metrics": [metric]}
    first |= {"recipe": config["recipe"], "started_from": "mine.pth", "is_published": False, "dataset": "Beach"}
    (folder / "config.json").write_text(json.dumps({**first, "provenance": None, **licences}))

    again = from_pretrained(folder)
    assert (again.architecture, again.metrics) == (expected.architecture, (METRIC,))
    assert again.info.licence.code == "MIT"
    assert again.info.started_from == "mine.pth"
    x = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        assert torch.equal(again(x), expected(x))


def test_saving_again_replaces_everything(folder: Path) -> None:
    model = small("fcn")
    model.save_pretrained(folder)
    again = from_pretrained(folder)
    assert again.architecture == model.architecture
    assert again.metrics == ()
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1, "safetensors by itself makes a file that only its owner can read"


def test_half_precision_is_for_the_file_only(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}, folder / "half")
    (folder / "half").replace(folder / "model.safetensors")
    found = from_pretrained(folder).state_dict()
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(found, tensors, rtol=2e-3, atol=1e-4)


def test_other_classes_start_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = from_pretrained(folder).state_dict()
    with caplog.at_level(logging.WARNING):
        model = from_pretrained(folder, num_classes=5)
    assert "num_classes=5 instead of 3" in caplog.text
    assert model.num_classes == 5
    assert model.classes[0] == "class_0"
    assert model.metrics == ()
    after = model.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {"head.classifier.weight", "head.classifier.bias"}
    assert all(torch.equal(before[name], after[name]) for name in before if name not in changed)


def test_a_published_network_keeps_what_is_known(zoo: Zoo, tmp_path: Path) -> None:
    create_model("toy_r50", "toys").save_pretrained(tmp_path)
    record, again = get_weights("toy_r50", "toys"), from_pretrained(tmp_path)
    assert (again.classes, again.palette) == (record.classes, record.palette)
    assert (again.preprocess, again.recipe, again.metrics) == (record.preprocess, record.recipe, record.metrics)
    assert json.loads((tmp_path / "config.json").read_text())["started_from"] == record.id


# --- where a folder is taken ----------------------------------------------------------------------


def test_a_factory_takes_a_folder(zoo: Zoo, tmp_path: Path) -> None:
    model = create_model("toy_r50", "toys")
    model.save_pretrained(tmp_path / "net")
    for pretrained in (tmp_path / "net", str(tmp_path / "net")):
        again = create_model("toy_r50", pretrained)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
        assert again.classes == model.classes


def test_a_factory_refuses_another_network(zoo: Zoo, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"holds semanticfpn on {BACKBONE}, expected fcn on")):
        create_model("toy_r50", folder)


@pytest.mark.parametrize("with_model", [False, True])
def test_predict_takes_a_folder(with_model: bool, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = create_model("toy_r50", "toys")
    model.save_pretrained("net")
    picture = image_tensor(40, 60)[0].transpose(1, 2, 0) * 40 + 128
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save("a.png")
    more = ["--model", "toy_r50"] if with_model else []
    assert main(["predict", "a.png", "--weights", "net", "--out", "out", *more]) == 0
    with Image.open("out/a_mask.png") as mask:
        assert np.array_equal(np.asarray(mask), model.predict("a.png").mask)


# --- folders that are none ------------------------------------------------------------------------


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}, indent=1))

    return change


def replace(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "config.json").read_text()
        assert old in text
        (folder / "config.json").write_text(text.replace(old, new, 1))

    return change


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), CheckpointError, "expected config.json and model.safet"),
        (lambda folder: (folder / "model.safetensors").unlink(), CheckpointError, "model.safetensors"),
        (cut, CheckpointError, "model.safetensors"),
        (pickled, CheckpointError, "begins with"),
        (replace('"in_chans"', "in_chans"), ManifestError, "config.json:54:2: not valid JSON"),
        (replace('"in_chans"', '"in_chan"'), ManifestError, "config.json:54: in_chan: unknown key; did you mean"),
        (replace('"semanticfpn"', "3"), ManifestError, "config.json:57: architecture.family: found 3"),
        (edit(schema_version=3), ManifestError, "schema_version: found 3, this library reads 2"),
        (edit(classes=["sky", "sea"]), ManifestError, "2 classes but 3 palette colours"),
        (edit(classes=["a", "b"], palette=[[0, 0, 0]] * 2), CheckpointError, "has 3 classes, the config beside it 2"),
        (replace(BACKBONE, "lcnet_050"), CheckpointError, "does not fit the network in"),
        (lambda folder: (folder / "config.json").write_text("[]"), ManifestError, "expected an object"),
    ],
    ids=range(12),
)
def test_a_folder_that_is_no_network(
    spoil: Callable[[Path], None],
    error: type[Exception],
    words: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(folder)
    with pytest.raises(error, match=re.escape(words)):
        from_pretrained(folder)
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "a.png"), "--weights", str(folder), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert told.startswith("zoo-seg: error: ")
    assert "Traceback" not in told


def test_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        from_pretrained(tmp_path / "nothing")


def test_a_network_by_hand_cannot_be_saved(tmp_path: Path) -> None:
    parts = small()
    model = Model(parts.network, dataclasses.replace(parts.info, architecture=None))
    with pytest.raises(OptionError, match="make it with build_model or create_model"):
        model.save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_full_disk_leaves_the_network_before(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with largest_file(200_000), pytest.raises(OSError, match="File too large"):
        small("fcn").save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
