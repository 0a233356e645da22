"""Class maps of GeoTIFFs: the whole image's, on the same grid, and nothing half written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Zoo
from helpers.disk import largest_file

import zoo_seg
from zoo_seg.errors import ImageError, OptionError
from zoo_seg.images.bands import Wanted
from zoo_seg.inference.augmented import windows
from zoo_seg.inference.geotiff import overview, predict_raster
from zoo_seg.inference.predictor import Predictor
from zoo_seg.manifest import Preprocess, TestOptions

rasterio: Any = pytest.importorskip("rasterio")

GRID = rasterio.transform.from_origin(500000, 5500000, 0.2, 0.2)


def noise(height: int, width: int, bands: int = 3, block: int = 6) -> np.ndarray:
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // block), -(-width // block), bands), dtype=np.uint8)
    return blocks.repeat(block, 0).repeat(block, 1)[:height, :width]


def write(path: Path, image: np.ndarray, crs: str | None = "EPSG:25832", **options: Any) -> Path:
    height, width, bands = image.shape
    options = {"transform": GRID, "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"} | options
    with rasterio.open(path, "w", "GTiff", width, height, bands, crs, dtype=image.dtype, **options) as target:
        target.write(np.moveaxis(image, 2, 0))
    return path


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        found: np.ndarray = source.read(1)
    return found


@pytest.fixture
def model(zoo: Zoo) -> zoo_seg.SegmentationModel:
    return zoo_seg.create_model("toy_r50", "toys")


class Local:
    """A network that sees the pixels around each, and no further: its logits are those of a 3x3 convolution."""

    in_chans, align_corners, size_divisor = 3, False, 1

    def __init__(self) -> None:
        self.kernel = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def forward_logits(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.kernel, padding=1)

    def predictor(self) -> Predictor:
        rules = Preprocess(mean=(128.0,) * 3, std=(64.0,) * 3, resize=None)
        return Predictor(self, classes="abc", palette=[(0, 0, 0), (9, 9, 9), (90, 9, 9)], preprocess=rules)


@pytest.mark.parametrize(
    "options",
    [{}, {"crop": (40, 56), "stride": (24, 24)}, {"crop": (40, 56), "flip": True}, {"crop": (512, 512)}],
    ids=["trained", "strides", "flip", "one window"],
)
def test_alike_windows_are_the_sliding_window(
    model: zoo_seg.SegmentationModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    image = noise(90, 117)
    source = write(tmp_path / "scene.tif", image)
    model.predict_raster(source, tmp_path / "mask.tif", confidence=tmp_path / "sure.tif", blend="mean", **options)
    whole = model.predict(image, mode="slide", resize=None, scales=(1.0,), confidence=True, **options)
    np.testing.assert_array_equal(read(tmp_path / "mask.tif"), whole.mask)
    assert whole.confidence is not None
    np.testing.assert_array_equal(read(tmp_path / "sure.tif"), np.rint(whole.confidence * 255))
    assert len(np.unique(whole.mask)) > 1


def test_windows_count_less_towards_their_border(tmp_path: Path) -> None:
    image, crop, stride, network = noise(61, 75, block=1), 24, 16, Local()
    predictor = network.predictor()
    test = TestOptions("slide", (crop, crop), (stride, stride))
    predict_raster(predictor, write(tmp_path / "a.tif", image), tmp_path / "m.tif", wanted=Wanted(), test=test)
    x = predictor.inputs(image, resize=None)[0]
    ramp = torch.minimum(torch.arange(crop) + 1, crop - torch.arange(crop)).double()
    total, weights = torch.zeros(3, 61, 75).double(), torch.zeros(61, 75).double()
    for top, bottom in windows(61, crop, stride):
        for left, right in windows(75, crop, stride):
            logits = network.forward_logits(x[..., top:bottom, left:right])[0]
            total[:, top:bottom, left:right] += logits * ramp[:, None] * ramp
            weights[top:bottom, left:right] += ramp[:, None] * ramp
    best, second = (total / weights).topk(2, dim=0).values
    clear = (best - second > 1e-4).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(read(tmp_path / "m.tif")[clear], total.argmax(0).numpy()[clear])


@pytest.mark.parametrize("blend", ["linear", "mean"])
def test_away_from_borders_no_seam(tmp_path: Path, blend: Any) -> None:
    image, predictor = noise(200, 230), Local().predictor()
    source, crop, stride = write(tmp_path / "a.tif", image), 64, 40
    test = TestOptions("slide", (crop, crop), (stride, stride))
    predict_raster(predictor, source, tmp_path / "m.tif", wanted=Wanted(), test=test, blend=blend)
    (whole,) = predictor.stream([image], resize=None)

    def away(size: int) -> np.ndarray:
        """Places that no window sees in its outermost row or column, but for those of the image itself."""
        places = np.ones(size, bool)
        for start, end in windows(size, crop, stride):
            places[[each for each in (start, end - 1) if each not in (0, size - 1)]] = False
        return places

    places = away(200)[:, None] & away(230)
    assert 0.8 < places.mean() < 1
    np.testing.assert_array_equal(read(tmp_path / "m.tif")[places], whole.mask[places])


def test_grid_colours_and_names_are_kept(model: zoo_seg.SegmentationModel, tmp_path: Path) -> None:
    model.predict_raster(write(tmp_path / "a.tif", noise(70, 90)), tmp_path / "new" / "m.tif")
    with rasterio.open(tmp_path / "new" / "m.tif") as found:
        assert (found.height, found.width, found.count, found.dtypes[0], found.nodata) == (70, 90, 1, "uint8", 255)
        assert (found.crs, found.transform) == ("EPSG:25832", GRID)
        assert found.profile["tiled"]
        assert [found.colormap(1)[number][:3] for number in range(3)] == list(model.palette)
        assert json.loads(found.tags()["classes"]) == list(model.classes)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.tif"]


def _nodata_value(path: Path, image: np.ndarray, hole: np.ndarray) -> Path:
    return write(path, np.where(hole[:, :, None], 7, np.maximum(image, 8)).astype(np.uint8), nodata=7)


def _alpha(path: Path, image: np.ndarray, hole: np.ndarray) -> Path:
    alpha = np.where(hole, 0, 255).astype(np.uint8)
    return write(path, np.dstack([image, alpha]), photometric="rgb", alpha="yes")


def _nan(path: Path, image: np.ndarray, hole: np.ndarray) -> Path:
    return write(path, np.where(hole[:, :, None], np.nan, image).astype(np.float32), nodata=np.nan)


@pytest.mark.parametrize("make", [_nodata_value, _alpha, _nan])
def test_what_has_no_data_has_no_class(model: zoo_seg.SegmentationModel, tmp_path: Path, make: Any) -> None:
    hole = np.zeros((70, 90), bool)
    hole[:33, :50] = True
    image = make(tmp_path / "a.tif", noise(70, 90), hole)
    wanted = {"range": (0, 255)} if make is _nan else {}
    model.predict_raster(image, tmp_path / "m.tif", confidence=tmp_path / "sure.tif", **wanted)
    np.testing.assert_array_equal(read(tmp_path / "m.tif") == 255, hole)
    np.testing.assert_array_equal(read(tmp_path / "sure.tif") == 0, hole)
    ranges = ((0.0, 255.0),) if make is _nan else None
    shown = overview(image, tmp_path / "m.tif", Wanted(ranges=ranges), model.classes, model.palette, longest=45)
    assert shown.mask.shape == (35, 45)
    assert 0.2 < shown.areas()["no data"] < 0.35


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_deep_values_with_a_range(model: zoo_seg.SegmentationModel, tmp_path: Path, dtype: str) -> None:
    image = noise(70, 90).astype(dtype) * 16
    source = write(tmp_path / "a.tif", image)
    with pytest.raises(ImageError, match=rf"a\.tif: values of type {dtype}, expected 8 bits.*--range"):
        model.predict_raster(source, tmp_path / "m.tif")
    assert not (tmp_path / "m.tif").exists()
    model.predict_raster(source, tmp_path / "m.tif", range=(0, 4095), blend="mean")
    whole = model.predict(image, mode="slide", resize=None, range=(0, 4095))
    np.testing.assert_array_equal(read(tmp_path / "m.tif"), whole.mask)


def test_bands(model: zoo_seg.SegmentationModel, tmp_path: Path) -> None:
    image = noise(70, 90, bands=5)
    source = write(tmp_path / "a.tif", image, photometric="minisblack")
    with pytest.raises(ImageError, match=r"a\.tif: 5 bands, expected 3; choose bands"):
        model.predict_raster(source, tmp_path / "m.tif")
    model.predict_raster(source, tmp_path / "m.tif", bands=(5, 2, 1), blend="mean")
    whole = model.predict(np.ascontiguousarray(image[:, :, [4, 1, 0]]), mode="slide", resize=None)
    np.testing.assert_array_equal(read(tmp_path / "m.tif"), whole.mask)


def test_only_rows_of_a_window_are_read_at_once(
    model: zoo_seg.SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo_seg.images.geotiff import Raster

    asked, pixels = [], Raster.pixels

    def watched(self: Raster, top: int, bottom: int) -> np.ndarray:
        asked.append((top, bottom))
        return pixels(self, top, bottom)

    monkeypatch.setattr(Raster, "pixels", watched)
    rows: list[Sequence[int]] = []
    source = write(tmp_path / "a.tif", noise(600, 60))
    model.predict_raster(source, tmp_path / "m.tif", crop=(64, 64), progress=lambda *done: rows.append(done))
    assert asked == windows(600, 64, 42)
    assert rows == sorted(rows)
    assert rows[0][0] <= 64
    assert rows[-1] == (600, 600)


def test_a_broken_image_leaves_what_was_there(model: zoo_seg.SegmentationModel, tmp_path: Path) -> None:
    source = write(tmp_path / "a.tif", noise(400, 100, block=1))
    source.write_bytes(source.read_bytes()[:60000])
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.tif").write_text("mine")
    with pytest.raises(ImageError, match=r"a\.tif: cannot be read \(.*\); expected a complete image file"):
        model.predict_raster(source, out / "m.tif", confidence=out / "sure.tif")
    assert [path.name for path in out.iterdir()] == ["m.tif"]
    assert (out / "m.tif").read_text() == "mine"


def test_a_full_disk_leaves_what_was_there(model: zoo_seg.SegmentationModel, tmp_path: Path) -> None:
    source, out = write(tmp_path / "a.tif", noise(200, 300, block=1)), tmp_path / "m.tif"
    model.predict_raster(source, out)
    before = out.read_bytes()
    with largest_file(len(before) // 2), pytest.raises(OSError, match="is there room on the disk"):
        model.predict_raster(source, out)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "m.tif"]


def test_what_cannot_be_is_refused(model: zoo_seg.SegmentationModel, tmp_path: Path) -> None:
    source = write(tmp_path / "a.tif", noise(70, 90))
    before = source.read_bytes()
    with pytest.raises(OptionError, match=r"a\.tif is the image itself"):
        model.predict_raster(source, source)
    with pytest.raises(OptionError, match="blend is 'cubic'; expected 'linear' or 'mean'"):
        model.predict_raster(source, tmp_path / "m.tif", blend="cubic")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"nothing\.tif: there is no such file"):
        model.predict_raster(tmp_path / "nothing.tif", tmp_path / "m.tif")
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.tif: cannot be read"):
        model.predict_raster(tmp_path / "text.tif", tmp_path / "m.tif")
    assert source.read_bytes() == before
    assert not (tmp_path / "m.tif").exists()
