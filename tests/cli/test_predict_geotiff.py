"""`zoo-seg predict` of GeoTIFFs: files on the same grid, polygons on the map, and the house's rules for results."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import Run
from PIL import Image

import zoo_seg
from zoo_seg.images import raster

rasterio: Any = pytest.importorskip("rasterio")
features: Any = pytest.importorskip("rasterio.features")
pytest.importorskip("shapely")

GRID = rasterio.transform.from_origin(500000, 5500000, 0.2, 0.2)
EVERYTHING = ["scene.geojson", "scene_confidence.tif", "scene_mask.tif", "scene_overlay.png", "zoo_seg_predict.json"]


def scene(path: str, crs: str | None = "EPSG:25832", **options: Any) -> Path:
    """A GeoTIFF of coloured blocks, 90x70."""
    blocks = np.random.default_rng(0).integers(0, 256, (3, 7, 9), dtype=np.uint8)
    options = {"transform": GRID, "nodata": 0, "tiled": True, "blockxsize": 16, "blockysize": 16} | options
    with rasterio.open(path, "w", "GTiff", 90, 70, 3, crs, dtype="uint8", **options) as target:
        target.write(np.maximum(blocks.repeat(10, 1).repeat(10, 2), 1) * (np.arange(90) > 4).astype(np.uint8))
    return Path(path)


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_all_kinds_lie_on_the_map(predict: Run) -> None:
    image = scene("scene.tif")
    found = predict(image, "--save", "mask,overlay,confidence,geojson", "--out", "out")
    assert (found.code, found.out) == (0, "1 done; results in out\n")
    assert names("out") == EVERYTHING
    for kind in ("mask", "confidence"):
        with rasterio.open(f"out/scene_{kind}.tif") as source:
            assert (source.shape, source.crs, source.transform) == ((70, 90), "EPSG:25832", GRID)
    with rasterio.open("out/scene_mask.tif") as source:
        ids = source.read(1)
    assert (ids[:, :5] == 255).all()
    assert ids[:, 5:].max() < 3
    collection = json.loads(Path("out/scene.geojson").read_text(encoding="utf-8"))
    assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::25832"
    burnt = [(each["geometry"], each["properties"]["class_id"]) for each in collection["features"]]
    drawn = features.rasterize(burnt, out_shape=(70, 90), transform=GRID, fill=255, dtype="uint8")
    np.testing.assert_array_equal(drawn, ids)
    assert sum(each["properties"]["area"] for each in collection["features"]) == pytest.approx(70 * 85 * 0.04)
    with Image.open("out/scene_overlay.png") as overlay:
        assert overlay.size == (90, 70)


def test_the_class_map_is_python_s(predict: Run) -> None:
    image = scene("scene.tif")
    assert predict(image, "--save", "mask", "--crop", "40", "40", "--out", "out").code == 0
    zoo_seg.create_model("toy_r50", "toys").predict_raster(image, "m.tif", crop=(40, 40))
    with rasterio.open("out/scene_mask.tif") as found, rasterio.open("m.tif") as expected:
        np.testing.assert_array_equal(found.read(1), expected.read(1))
    assert names("out") == ["scene_mask.tif", "zoo_seg_predict.json"]


def test_degrees_need_no_name(predict: Run) -> None:
    image = scene("scene.tif", "EPSG:4326", transform=rasterio.transform.from_origin(9, 50, 1e-5, 1e-5))
    assert predict(image, "--save", "geojson", "--out", "out").code == 0
    assert names("out") == ["scene.geojson", "zoo_seg_predict.json"]
    collection = json.loads(Path("out/scene.geojson").read_text(encoding="utf-8"))
    assert "crs" not in collection
    x, y = np.concatenate([each["geometry"]["coordinates"][0] for each in collection["features"]]).T
    assert (x.min(), x.max()) == (pytest.approx(9 + 5e-5), pytest.approx(9 + 9e-4))
    assert (y.min(), y.max()) == (pytest.approx(50 - 7e-4), pytest.approx(50))


def test_what_is_there_is_kept_and_what_is_not_ours_stays(predict: Run) -> None:
    image = scene("scene.tif")
    arguments = (image, "--save", "mask,confidence", "--out", "out")
    assert predict(*arguments).out == "1 done; results in out\n"
    first = Path("out/scene_mask.tif").stat().st_mtime_ns
    assert predict(*arguments).out == "1 already there; results in out\n"
    assert Path("out/scene_mask.tif").stat().st_mtime_ns == first
    Path("out/scene_confidence.tif").unlink()
    assert predict(*arguments).out == "1 done; results in out\n"
    os.utime(image, (1, 1))
    assert predict(*arguments).out == "1 done; results in out\n"
    scene("out/scene_mask.tif")
    mine = Path("out/scene_mask.tif").read_bytes()
    found = predict(*arguments, "--overwrite")
    assert found.code != 0
    assert "out/scene_mask.tif was not written by zoo-seg predict" in found.err
    assert Path("out/scene_mask.tif").read_bytes() == mine


def test_results_are_no_images_of_a_folder(predict: Run) -> None:
    Path("scenes").mkdir()
    scene("scenes/scene.tif")
    Image.new("RGB", (40, 30)).save("scenes/plain.tif")
    assert predict("scenes", "--out", "scenes").out == "2 done; results in scenes\n"
    assert {"scene_mask.tif", "plain_mask.png"} <= set(names("scenes"))
    assert predict("scenes", "--out", "scenes").out == "2 already there; results in scenes\n"


def test_without_a_reference_system(predict: Run) -> None:
    image = scene("scene.tif", None)
    found = predict(image, "--save", "mask,geojson", "--out", "out")
    assert found.code == 1
    assert "scene.tif: it names no reference system (CRS)" in found.err
    assert not Path("out").exists()
    assert predict(image, "--out", "out").code == 0
    with rasterio.open("out/scene_mask.tif") as source:
        assert (source.crs, source.transform) == (None, GRID)


def test_a_broken_scene_leaves_nothing_and_the_next_is_done(predict: Run) -> None:
    cut = scene("cut.tif")
    cut.write_bytes(cut.read_bytes()[:9000])
    found = predict(cut, scene("scene.tif"), "--save", "mask,overlay,confidence", "--out", "out")
    assert (found.code, found.out) == (1, "1 done, 1 failed; results in out\n")
    assert found.err.startswith("zoo-seg: cut.tif: cannot be read (")
    assert found.err.count("\n") == 1
    assert names("out") == [name for name in EVERYTHING if "geojson" not in name]


def test_bands_that_do_not_fit(predict: Run) -> None:
    image = scene("scene.tif")
    found = predict(image, "--bands", "4", "2", "1", "--out", "out")
    assert found.code == 1
    assert "scene.tif: 3 bands, expected at least 4" in found.err
    assert names("out") == ["zoo_seg_predict.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mode", "whole"), "--mode whole: scene.tif is a GeoTIFF, which is predicted by windows"),
        (("--resize", "none"), "--resize: scene.tif is a GeoTIFF, which is predicted at its own size"),
        (("--scales", "1", "2"), "--scales: scene.tif is a GeoTIFF, which is predicted at its own size"),
        (("--save", "mask,labelme"), "--save labelme: scene.tif is a GeoTIFF"),
    ],
)
def test_options_that_are_not_for_maps(predict: Run, options: tuple[str, ...], message: str) -> None:
    found = predict(scene("scene.tif"), *options, "--out", "out")
    assert found.code != 0
    assert message in found.err
    assert not Path("out").exists()


def test_without_the_extra_the_command_is_named(predict: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    image = scene("scene.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.setattr(raster, "_quiet_rasterio", raster._quiet_rasterio.__wrapped__)
    found = predict(image, "--out", "out")
    assert found.code != 0
    assert "pip install 'zoo_seg[aerial]'" in found.err
    assert not Path("out").exists()
