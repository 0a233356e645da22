"""Images of other channels than RGB, from the data set to the exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Zoo
from helpers.cli import Run, runner
from helpers.drawn import draw_bands
from PIL import Image

import zoo_seg
from zoo_seg.data import open_data
from zoo_seg.training.transforms import PhotometricDistortion

NETWORK = ("--model", "semanticfpn", "--backbone", "mobilenetv3_small_050", "--channels", "16")
TINY = ("--batch-size", "4", "--crop-size", "48", "64", "--workers", "0", "--device", "cpu", "--epochs", "1")

run = pytest.fixture(name="run")(runner)


def statistics(folder: Path, bands: list[int], top: float) -> tuple[Any, Any]:
    """Mean and std of the train split, by the definition, from the files."""
    import rasterio

    values = []
    for path in sorted((folder / "images" / "train").glob("*.tif")):
        with rasterio.open(path) as file:
            values.append(np.rint(file.read(bands) * (255 / top)).reshape(len(bands), -1))
    pixels = np.concatenate(values, axis=1)
    return pixels.mean(1), pixels.std(1)


KINDS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "rgb and nir": (4, "uint16", {"channels": 4, "range": [0, 4000]}),
    "multispectral": (6, "float32", {"channels": 6, "range": [0, 1]}),
    "some bands": (6, "uint16", {"bands": [6, 1], "range": [[0, 4000], [0, 2000]]}),
    "one band": (1, "uint16", {"channels": 1, "range": [0, 4000]}),
    "three of six": (6, "float32", {"bands": [6, 5, 1], "range": [0, 1]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_from_the_data_to_the_exported_file(run: Run, kind: str, tmp_path: Path) -> None:
    count, dtype, description = KINDS[kind]
    folder = draw_bands(tmp_path / "data", count, dtype, **description)
    channels = description.get("channels") or len(description["bands"])
    report = json.loads(run("check-data", folder, "--json").out)
    assert report["errors"] == []
    train = report["splits"][0]
    bands = description.get("bands", list(range(1, count + 1)))
    if kind != "some bands":
        mean, std = statistics(folder, bands, description["range"][1])
        np.testing.assert_allclose(train["mean"], mean, atol=0.01)
        np.testing.assert_allclose(train["std"], std, atol=0.01)
    shown = " ".join(f"{each:.2f}" for each in train["mean"])
    assert f"train, each channel from 0 to 255: mean {shown}, std " in run("check-data", folder).out

    out = tmp_path / "run"
    trained = run("finetune", "--data", folder, "--out", out, *NETWORK, *TINY)
    assert trained.code == 0, trained.err
    model = zoo_seg.from_pretrained(out)
    rules = model.preprocess
    assert model.in_chans == channels
    assert rules.bands == (tuple(description["bands"]) if "bands" in description else None)
    assert rules.range == (((0, 4000), (0, 2000)) if kind == "some bands" else (tuple(description["range"]),))
    if channels == 3:  # published networks have RGB's, and so has a new one
        assert rules.mean == (123.675, 116.28, 103.53)
    else:
        assert (list(rules.mean), list(rules.std)) == (train["mean"], train["std"])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"Images of {channels} channel" in card
    if "bands" in description:
        assert f"{', '.join(map(str, description['bands']))}, in this order" in card

    measured = run("evaluate", "--weights", out, "--data", folder, "--out", tmp_path / "measured", "--device", "cpu")
    assert measured.code == 0, measured.err
    miou = json.loads((tmp_path / "measured" / "evaluation.json").read_text())["scores"]["mIoU"]
    assert miou == pytest.approx(model.metrics[0].value)

    predicted = run("predict", folder / "images" / "val", "--weights", out, "--out", tmp_path / "masks")
    assert predicted.code == 0, predicted.err
    image = folder / "images" / "val" / "000.tif"
    expected = model.predict(image).mask
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks" / "000_mask.png")), expected)
    assert Image.open(tmp_path / "masks" / "000_overlay.png").size == (64, 48)

    exported = run("export", "--weights", out, "--out", tmp_path / "net.onnx", "--preprocess", "--argmax")
    assert exported.code == 0, exported.err
    again = run("predict", image, "--weights", tmp_path / "net.onnx", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert (np.asarray(Image.open(tmp_path / "again" / "000_mask.png")) == expected).mean() > 0.999


@pytest.mark.slow
def test_the_channel_that_tells_the_classes_is_learnt(tmp_path: Path) -> None:
    """Which an RGB network would not see: it is the fourth."""
    folder = draw_bands(tmp_path / "data", 4, "uint16", train=12, val=3, channels=4, range=[0, 4000])
    options = {"batch_size": 4, "crop_size": (48, 64), "workers": 0, "device": "cpu", "progress": False}
    model = zoo_seg.finetune(
        folder, "semanticfpn", backbone="mobilenetv3_small_050", channels=16, out=tmp_path / "run", epochs=30,
        optimizer="adamw", lr=0.003, scale=(1, 1), photometric=False, **options,
    )  # fmt: skip
    assert model.metrics[0].value > 45  # 57; all ground is 23


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 6])
def test_a_network_for_rgb_starts_with_adapted_weights(zoo: Zoo, channels: int, tmp_path: Path) -> None:
    """One channel gets their sum, more repeat them by 3/C: a grey image in every channel looks the same as in RGB."""
    folder = draw_bands(tmp_path / "data", channels, "uint16", channels=channels, range=[0, 4000])
    options = {"batch_size": 4, "crop_size": (48, 64), "workers": 0, "device": "cpu", "progress": False}
    first = zoo_seg.finetune(folder, "toy_r50", "toys", out=tmp_path / "a", epochs=1, lr=1e-9, **options)
    assert first.in_chans == channels
    published = zoo_seg.create_model("toy_r50", "toys").backbone
    grey = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        assert first.network.in_chans == channels
        found = stem(first.backbone)(grey.expand(-1, channels, -1, -1))
        torch.testing.assert_close(found, stem(published)(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)
    again = zoo_seg.finetune(folder, weights=tmp_path / "a", out=tmp_path / "b", epochs=1, **options)
    assert (again.in_chans, again.preprocess) == (channels, first.preprocess)


def stem(backbone: torch.nn.Module) -> torch.nn.Module:
    return next(module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d))


def test_what_does_not_fit_is_one_message(run: Run, tmp_path: Path) -> None:
    folder = draw_bands(tmp_path / "data", 6, "uint16", range=[0, 4000])
    checked = run("check-data", folder)
    assert checked.code == 1
    assert '6 bands, expected 3; choose bands, such as "bands": [1, 2, 3]' in " ".join(checked.out.split())
    assert '"channels": 6 trains a network on all of them' in " ".join(checked.out.split())

    model = zoo_seg.build_model("fcn", "mobilenetv3_small_050", 3, in_chans=4, channels=8)
    model.save_pretrained(tmp_path / "four")
    refused = run("evaluate", "--weights", tmp_path / "four", "--data", folder, "--device", "cpu")
    assert refused.code == 1
    assert "the network takes images of 4 channels" in refused.err
    assert '"channels": 4 in its dataset.json' in refused.err
    predicted = run(
        "predict", folder / "images" / "val" / "000.tif", "--weights", tmp_path / "four", "--out", tmp_path / "out",
        "--range", "0", "4000",
    )  # fmt: skip
    assert predicted.code == 1
    assert "6 bands, expected 4; choose bands" in predicted.err
    options = ("--bands", "1", "2", "3", "4", "--range", "0", "4000")
    image = folder / "images" / "val" / "000.tif"
    assert run("predict", image, "--weights", tmp_path / "four", "--out", tmp_path / "o1", *options).code == 0
    assert run("predict", image, "--weights", tmp_path / "four", "--out", tmp_path / "o2", "--bands", "1").code == 2


@pytest.mark.slow
def test_weights_of_other_channels_are_refused(run: Run, tmp_path: Path) -> None:
    folder = draw_bands(tmp_path / "data", 6, "uint16", channels=6, range=[0, 4000])
    zoo_seg.build_model("fcn", "mobilenetv3_small_050", 3, in_chans=4, channels=8).save_pretrained(tmp_path / "four")
    refused = run("finetune", "--data", folder, "--out", tmp_path / "run", "--weights", tmp_path / "four", *TINY)
    assert refused.code == 2
    assert "is for images of 4 channels, not 6; only a network for RGB is adapted" in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("channels", 0, "expected at least 1"),
        ("channels", "four", "expected a whole number"),
        ("bands", [1, 0], "numbers of bands, from 1 on"),
        ("bands", [], "numbers of bands, from 1 on"),
        ("range", [[0, 1], [0, 1]], "one pair of values, or 3"),
        ("range", [[0, 1], [1, 0], [0, 1]], "black and white"),
        ("range", [[0, 1], [0, "x"], [0, 1]], "expected a number"),
    ],
)
def test_a_wrong_description(run: Run, key: str, value: Any, message: str, tmp_path: Path) -> None:
    folder = draw_bands(tmp_path, 3, "uint16", train=1, val=1, **{key: value})
    refused = run("check-data", folder)
    assert refused.code == 1
    assert "dataset.json:" in refused.err
    assert key in refused.err
    assert message in refused.err


def test_a_range_that_hides_a_channel_is_told(run: Run, tmp_path: Path) -> None:
    folder = draw_bands(tmp_path, 4, "float32", channels=4, range=[[0, 1], [0, 1], [0, 1000], [0, 1]])
    out = " ".join(run("check-data", folder).out.split())
    assert "channel 3 hardly varies (mean 0.0, standard deviation 0.0, of 0 to 255): does the range fit" in out
    assert "channel 1 hardly" not in out


def test_a_data_set_knows_its_channels(tmp_path: Path) -> None:
    plain = open_data(draw_bands(tmp_path / "a", 3, "uint16", range=[0, 4000]))
    assert (plain.channels, plain.bands, plain.range) == (3, None, (0, 4000))
    chosen = open_data(draw_bands(tmp_path / "b", 6, "uint16", bands=[6, 1, 2, 3], range=[0, 4000]))
    assert (chosen.channels, chosen.bands) == (4, (6, 1, 2, 3))
    assert chosen.read_image(chosen.samples("train")[0].image).shape == (48, 64, 4)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_colours_of_other_images_change_in_brightness_and_contrast_only(channels: int) -> None:
    """All channels alike, by a factor and a shift: what is alike in them stays alike."""
    distort = PhotometricDistortion()
    image, changed = torch.full((channels, 4, 4), 100, dtype=torch.uint8), 0
    image[0] = 50
    for seed in range(20):
        torch.manual_seed(seed)
        found, _ = distort(image, torch.zeros(4, 4))
        assert all(torch.equal(found[1], found[i]) for i in range(2, channels))
        assert channels == 1 or (found[1] >= found[0]).all()
        changed += not torch.equal(found, image)
    assert changed > 10


def test_a_page_for_browsers_wants_rgb() -> None:
    pytest.importorskip("gradio")
    from zoo_seg.demo.networks import Networks

    model = zoo_seg.build_model("fcn", "mobilenetv3_small_050", 3, in_chans=4, channels=8)
    with pytest.raises(zoo_seg.errors.OptionError, match="mine takes images of 4 channels, of which a browser"):
        Networks({"mine": model})
