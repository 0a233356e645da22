"""Polygons of a class map: the map again when they are drawn, and borders that neighbours share."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from zoo_seg.errors import MissingExtraError, OptionError
from zoo_seg.inference.polygons import Polygon, feature_collection, without_holes
from zoo_seg.inference.segmentation import Segmentation

shapely: Any = pytest.importorskip("shapely")
features: Any = pytest.importorskip("rasterio.features")

NAMES = ("ground", "wall", "sky", "lake")
COLOURS = ((10, 20, 30), (200, 0, 0), (0, 0, 200), (0, 99, 0))


def segmentation(mask: np.ndarray) -> Segmentation:
    return Segmentation(mask, NAMES, COLOURS)


def noise(height: int, width: int, block: int = 1, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, 4, (-(-height // block), -(-width // block)), dtype=np.uint8)
    return ids.repeat(block, 0).repeat(block, 1)[:height, :width]


def smooth(height: int = 120, width: int = 150) -> np.ndarray:
    """Round regions, islands in lakes."""
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / 9) + np.cos(y / 7) + np.sin((x + y) / 13)
    return np.digitize(waves, [-1, 0, 1.2]).astype(np.uint8)


def drawn(polygons: list[Polygon], shape: tuple[int, ...]) -> np.ndarray:
    burnt = [(polygon.__geo_interface__, polygon.class_id) for polygon in polygons]
    ids: np.ndarray = features.rasterize(burnt, out_shape=shape, fill=255, dtype="uint8")
    return ids


MASKS = {
    "noise": noise(40, 50),
    "blocks": noise(60, 41, block=5),
    "smooth": smooth(),
    "one class": np.full((7, 9), 2, np.uint8),
    "one pixel": np.full((1, 1), 3, np.uint8),
    "board": (np.indices((12, 12)).sum(0) % 2).astype(np.uint8),
}


@pytest.mark.parametrize("name", MASKS)
def test_drawn_again_they_are_the_mask(name: str) -> None:
    mask = MASKS[name]
    polygons = segmentation(mask).polygons()
    np.testing.assert_array_equal(drawn(polygons, mask.shape), mask)
    shapes = [shapely.geometry.shape(polygon) for polygon in polygons]
    assert all(shape.is_valid for shape in shapes)
    assert sum(polygon.area for polygon in polygons) == mask.size
    assert [polygon.area for polygon in polygons] == [shape.area for shape in shapes]
    assert [polygon.class_id for polygon in polygons] == sorted(polygon.class_id for polygon in polygons)
    assert all(polygon.name == NAMES[polygon.class_id] for polygon in polygons)


def test_a_lake_is_a_hole_of_its_ground() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:6] = 3
    ground, lake = segmentation(mask).polygons()
    assert (ground.name, ground.area, len(ground.holes)) == ("ground", 42, 1)
    assert (lake.name, lake.area, lake.holes) == ("lake", 6, ())
    assert set(ground.exterior) == {(0, 0), (8, 0), (8, 6), (0, 6)}
    assert set(ground.holes[0]) == set(lake.exterior) == {(3, 2), (6, 2), (6, 4), (3, 4)}
    assert lake.exterior[0] == lake.exterior[-1]


def test_small_regions_are_left_out() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:6], mask[5, 7] = 3, 1
    assert [polygon.name for polygon in segmentation(mask).polygons(min_area=2)] == ["ground", "lake"]
    assert [polygon.name for polygon in segmentation(mask).polygons(min_area=7)] == ["ground"]


@pytest.mark.parametrize("name", ["noise", "blocks", "smooth", "board"])
@pytest.mark.parametrize("tolerance", [0.5, 1, 3])
def test_simplified_neighbours_share_their_border(tolerance: float, name: str) -> None:
    mask = MASKS[name]
    polygons = segmentation(mask).polygons(tolerance=tolerance)
    shapes = np.array([shapely.geometry.shape(polygon) for polygon in polygons])
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    assert shapely.area(shapes).sum() == pytest.approx(mask.size)  # no overlap, so no gap
    assert shapely.union_all(shapes).area == pytest.approx(mask.size)
    assert shapely.union_all(shapes).bounds == (0, 0, mask.shape[1], mask.shape[0])


def test_simplifying_saves_points_and_moves_borders_little() -> None:
    mask = smooth()
    exact, simple = segmentation(mask).polygons(), segmentation(mask).polygons(tolerance=1.5)
    points = [sum(len(polygon.exterior) for polygon in found) for found in (exact, simple)]
    assert len(simple) == len(exact)
    assert points[1] < points[0] / 2
    assert (drawn(simple, mask.shape) == mask).mean() > 0.97


def test_beyond_256_classes() -> None:
    mask = np.full((4, 5), 299, np.uint16)
    mask[1, 1] = 7
    names = tuple(f"class {i}" for i in range(300))
    found = Segmentation(mask, names, ((0, 0, 0),) * 300).polygons()
    assert [(polygon.name, polygon.area) for polygon in found] == [("class 7", 1), ("class 299", 19)]


@pytest.mark.parametrize("options", [{"min_area": -1}, {"tolerance": -0.5}, {"tolerance": float("nan")}])
def test_wrong_options(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="expected a number of pixels, at least 0"):
        segmentation(MASKS["board"]).polygons(**options)


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'zoo_seg\[results\]'"):
        segmentation(MASKS["board"]).polygons()


# --- without holes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("tolerance", [0, 2])
def test_cut_through_their_holes_they_cover_the_same(tolerance: float, name: str) -> None:
    for polygon in segmentation(MASKS[name]).polygons(tolerance=tolerance):
        parts = [shapely.Polygon(ring) for ring in without_holes(polygon)]
        assert len(parts) > bool(polygon.holes)
        assert all(part.is_valid for part in parts)
        assert sum(part.area for part in parts) == pytest.approx(polygon.area)
        whole = shapely.geometry.shape(polygon)
        assert shapely.union_all(parts).symmetric_difference(whole).area == pytest.approx(0, abs=1e-6)


# --- GeoJSON --------------------------------------------------------------------------------------


def signed_area(ring: list[list[float]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2


@pytest.mark.parametrize("transform", [None, (0.5, 0.0, 300000.0, 0.0, -0.5, 5000000.0)])
def test_features_turn_as_geojson_has_it(transform: Any) -> None:
    polygons = segmentation(MASKS["smooth"]).polygons()
    crs = transform and "urn:ogc:def:crs:EPSG::32633"
    made = json.loads(json.dumps(feature_collection(polygons, COLOURS, transform=transform, crs=crs)))
    assert made["type"] == "FeatureCollection"
    assert ("coordinates" in made) == (transform is None)
    assert ("crs" in made) == (transform is not None)
    assert any(len(feature["geometry"]["coordinates"]) > 1 for feature in made["features"])
    for feature, polygon in zip(made["features"], polygons, strict=True):
        exterior, *holes = feature["geometry"]["coordinates"]
        assert signed_area(exterior) > 0
        assert all(signed_area(hole) < 0 for hole in holes)
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert feature["properties"]["area"] == pytest.approx(shape.area)
        assert shape.area == pytest.approx(polygon.area * (0.25 if transform else 1))
        assert feature["properties"]["class"] == NAMES[feature["properties"]["class_id"]]
    if transform is None:
        assert all(isinstance(value, int) for point in exterior for value in point)
    else:
        assert shape.bounds[0] >= 300000
        assert shape.bounds[3] <= 5000000
