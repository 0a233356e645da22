"""A class map's regions as polygons, and polygons as GeoJSON. Needs the extra `results`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_seg.errors import MissingExtraError, OptionError

Ring = tuple[tuple[float, float], ...]
"""Points (x, y); the last one is the first."""
Transform = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f), as of `affine.Affine`: the corner (x, y) lies at (a x + b y + c, d x + e y + f) of a map."""


@dataclass(frozen=True)
class Polygon:
    """A region of one class. `shapely.geometry.shape(polygon)` takes it, as all that reads `__geo_interface__` does."""

    class_id: int
    name: str
    """Of the class."""
    exterior: Ring
    """In pixels: x to the right, y down, (0, 0) is the top left corner of the image."""
    holes: tuple[Ring, ...]
    area: float
    """Of the polygon, in pixels."""

    @property
    def __geo_interface__(self) -> dict[str, Any]:
        return {"type": "Polygon", "coordinates": (self.exterior, *self.holes)}


def check_packages() -> tuple[Any, Any]:
    """`rasterio.features` and shapely.

    Raises:
        MissingExtraError: one is not installed; the message names the pip command.
    """
    try:
        import rasterio.features
        import shapely
    except ImportError as error:
        raise MissingExtraError(f"polygons need more ({error}); pip install 'zoo_seg[results]'") from None
    return rasterio.features, shapely


def check_polygon_options(min_area: float, tolerance: float) -> None:
    """Refuse what `Segmentation.polygons` does not take.

    Raises:
        OptionError: an option is negative or no number.
    """
    for name, value in (("min_area", min_area), ("tolerance", tolerance)):
        if not 0 <= value < float("inf"):
            raise OptionError(f"{name} is {value}; expected a number of pixels, at least 0")


def polygons(mask: Any, classes: Sequence[str], min_area: float = 0, tolerance: float = 0.0) -> list[Polygon]:
    """See `Segmentation.polygons`.

    Args:
        mask: an array (H, W), or a band of rasterio's, which is read by rows; what is no class id is left out.
    """
    check_polygon_options(min_area, tolerance)
    features, shapely = check_packages()
    found = list(_regions(features, mask, len(classes)))
    found.sort(key=lambda each: each[0])
    ids, rings = [value for value, _ in found], [each for _, each in found]
    if tolerance:
        rings = _with_shared_corners(rings, mask.shape)
    shapes = np.array([shapely.Polygon(each[0], each[1:]) for each in rings], dtype=object)
    pixels = shapely.area(shapes)
    if tolerance:
        # Each border once for both its sides. The coverage's own border is the image's, whose corners stay.
        shapes = shapely.coverage_simplify(shapes, tolerance, simplify_boundary=False)
    return [
        Polygon(value, classes[value], _ring(shape.exterior), tuple(map(_ring, shape.interiors)), float(shape.area))
        for value, shape, count in zip(ids, shapes, pixels.tolist(), strict=True)
        if count >= min_area
    ]


def each_polygon(mask: Any, classes: Sequence[str], min_area: float = 0) -> Iterator[Polygon]:
    """`polygons` one by one, of any number, in the order of their last rows."""
    check_polygon_options(min_area, 0.0)
    features, shapely = check_packages()
    for value, (exterior, *holes) in _regions(features, mask, len(classes)):
        shape = shapely.Polygon(exterior, holes)
        if shape.area >= min_area:
            yield Polygon(value, classes[value], _ring(shape.exterior), tuple(map(_ring, shape.interiors)), shape.area)


def _regions(features: Any, mask: Any, classes: int) -> Iterator[tuple[int, list[npt.NDArray[np.intp]]]]:
    """The class id and the rings (n, 2) of each region; what is no class is left out."""
    source = np.ascontiguousarray(mask) if isinstance(mask, np.ndarray) else mask
    for shape, value in features.shapes(source, connectivity=4):
        if value < classes:
            yield int(value), [np.array(ring, dtype=np.intp) for ring in shape["coordinates"]]


def _ring(ring: Any) -> Ring:
    """Of shapely's."""
    return tuple(ring.coords)


def _with_shared_corners(
    shapes: Sequence[Sequence[npt.NDArray[np.intp]]], size: tuple[int, ...]
) -> list[list[npt.NDArray[np.intp]]]:
    """Rings (n, 2) with a point wherever a neighbour has a corner: a border is then the same points on both sides."""
    corners = np.zeros((size[0] + 1, size[1] + 1), dtype=bool)
    for rings in shapes:
        for ring in rings:
            corners[ring[:, 1], ring[:, 0]] = True

    def passed(ring: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        steps = np.diff(ring, axis=0)  # each along one axis
        walk = np.sign(steps).repeat(np.abs(steps).sum(1), axis=0).cumsum(0)
        points: npt.NDArray[np.intp] = np.concatenate([ring[:1], ring[0] + walk])
        return points[corners[points[:, 1], points[:, 0]]]

    return [[passed(ring) for ring in rings] for rings in shapes]


def without_holes(polygon: Polygon) -> list[Ring]:
    """The same area for formats without holes: the exterior, or those of parts, cut through each hole."""
    if not polygon.holes:
        return [polygon.exterior]
    _, shapely = check_packages()
    parts, done = [shapely.Polygon(polygon.exterior, polygon.holes)], []
    while parts:
        part = parts.pop()
        if not part.interiors:
            done.append(_ring(part.exterior))
            continue
        left, top, right, bottom = part.bounds
        spans = sorted(hole.bounds for hole in part.interiors)
        low, _, high, _ = spans[len(spans) // 2]
        cut = round((low + high) / 2)
        cut = cut if low < cut < high else (low + high) / 2  # between pixels where that is possible
        for half in (shapely.box(left, top, cut, bottom), shapely.box(cut, top, right, bottom)):
            pieces = shapely.get_parts(shapely.intersection(part, half))
            parts += [piece for piece in pieces.tolist() if piece.geom_type == "Polygon"]
    return done


def feature_collection(
    polygons: Sequence[Polygon],
    palette: Sequence[tuple[int, int, int]],
    *,
    transform: Transform | None = None,
    crs: str | None = None,
    **members: object,
) -> dict[str, Any]:
    """Polygons as a GeoJSON FeatureCollection (RFC 7946), a feature for each: `class_id`, `class`, `color`, `area`.

    Exteriors run counterclockwise by their numbers, holes clockwise (the right-hand rule).

    Args:
        polygons: in pixels.
        palette: the RGB colour of each class id.
        transform: from pixels to a map; None: the coordinates are pixels, y down.
        crs: the map's reference system, such as `"urn:ogc:def:crs:EPSG::32633"`, written as the member that GDAL and
            QGIS read; None for pixels, or for longitude and latitude (WGS 84), which RFC 7946 means without one.
        members: further members of the collection.
    """
    where = "pixels: x to the right, y down, (0, 0) is the image's top left corner"
    said: dict[str, object] = {"coordinates": where} if transform is None else {}
    if crs is not None:
        said["crs"] = {"type": "name", "properties": {"name": crs}}
    features = [feature(each, palette, transform) for each in polygons]
    return {"type": "FeatureCollection", **said, **members, "features": features}


def feature(
    polygon: Polygon, palette: Sequence[tuple[int, int, int]], transform: Transform | None = None
) -> dict[str, Any]:
    """A feature of `feature_collection`."""
    scale = 1.0 if transform is None else abs(transform[0] * transform[4] - transform[1] * transform[3])
    return {
        "type": "Feature",
        "properties": {
            "class_id": polygon.class_id,
            "class": polygon.name,
            "color": "#{:02x}{:02x}{:02x}".format(*palette[polygon.class_id]),
            "area": polygon.area * scale,
        },
        "geometry": {
            "type": "Polygon",
            "coordinates": [
                _placed(ring, transform, is_hole=position > 0)
                for position, ring in enumerate((polygon.exterior, *polygon.holes))
            ],
        },
    }


def _placed(ring: Ring, transform: Transform | None, *, is_hole: bool) -> list[list[float]]:
    """A ring on the map, turned as GeoJSON has it; whole numbers stay whole."""
    points = np.array(ring, dtype=np.float64)
    if transform is not None:
        a, b, c, d, e, f = transform
        points = points @ np.array([[a, d], [b, e]]) + (c, f)
    x, y = (points - points[0]).T  # maps have large coordinates
    clockwise = float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) < 0
    if clockwise != is_hole:
        points = points[::-1]
    exact = points.astype(np.int64)
    return (exact if (exact == points).all() else points).tolist()  # type: ignore[no-any-return]
