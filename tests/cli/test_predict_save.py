"""`zoo-seg predict --save`: what each kind of file holds, and that all are kept, done again and refused alike."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import Run
from helpers.drawn import picture
from PIL import Image

import zoo_seg
from zoo_seg.cli import predict as verb
from zoo_seg.inference.segmentation import Segmentation

shapely: Any = pytest.importorskip("shapely")
pytest.importorskip("rasterio")
coco: Any = pytest.importorskip("pycocotools.coco")

NAMES = ["ground", "wall", "sky"]
ENDINGS = {
    "mask": "_mask.png",
    "overlay": "_overlay.png",
    "confidence": "_confidence.png",
    "geojson": ".geojson",
    "labelme": ".json",
}
EVERYTHING = "mask,overlay,confidence,coco,geojson,labelme"


def expected(path: str | Path, **options: Any) -> Segmentation:
    found: Segmentation = zoo_seg.create_model("toy_r50", "toys").predict(path, **options)
    return found


def read(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def tree(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def load_coco(path: str | Path) -> Any:
    """As pycocotools reads it, without its chatter."""
    from contextlib import redirect_stdout

    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return coco.COCO(str(path))


# --- what is in the files -------------------------------------------------------------------------


def test_every_kind_is_written(predict: Run) -> None:
    image = picture("p/in/a.png")
    assert predict("p", "--save", EVERYTHING).out == "1 done; results in out\n"
    assert tree("out") == sorted(
        [*(f"in/a{ending}" for ending in ENDINGS.values()), "coco.json", "zoo_seg_predict.json"]
    )
    found = expected(image, confidence=True)
    assert found.confidence is not None
    assert np.array_equal(read("out/in/a_mask.png"), found.mask)
    assert len(np.unique(found.mask)) > 1
    confidence = read("out/in/a_confidence.png")
    assert confidence.dtype == np.uint8
    assert np.abs(confidence / 255 - found.confidence).max() <= 0.5 / 255 + 1e-6

    polygons = found.polygons()
    features = json.loads(Path("out/in/a.geojson").read_text("ascii"))
    assert features["type"] == "FeatureCollection"
    assert features["image"] == {"file_name": "../../p/in/a.png", "height": 30, "width": 40}
    assert [each["properties"]["class"] for each in features["features"]] == [each.name for each in polygons]
    shapes = [shapely.geometry.shape(each["geometry"]) for each in features["features"]]
    assert all(shape.equals(shapely.geometry.shape(each)) for shape, each in zip(shapes, polygons, strict=True))

    labels = json.loads(Path("out/in/a.json").read_text("ascii"))
    assert Path("out/in", labels["imagePath"]).samefile(image)
    assert (labels["imageData"], labels["imageHeight"], labels["imageWidth"]) == (None, 30, 40)
    areas = dict.fromkeys(NAMES, 0.0)
    for shape in labels["shapes"]:
        assert shape["shape_type"] == "polygon"
        areas[shape["label"]] += shapely.Polygon(shape["points"]).area
    assert {name: area / 1200 for name, area in areas.items() if area} == pytest.approx(found.areas())


def test_coco_s_masks_are_the_masks(predict: Run) -> None:
    for name in ("a", "in/b"):
        picture(f"p/{name}.png", len(name))
    assert predict("p", "--save", "coco").out == "2 done; results in out\n"
    assert "a_mask.png" in tree("out")  # what it is made of
    loaded = load_coco("out/coco.json")
    categories = loaded.loadCats(loaded.getCatIds())
    assert [(each["id"], each["name"]) for each in categories] == [(1, "ground"), (2, "wall"), (3, "sky")]
    assert categories[1]["color"] == [200, 0, 0]
    images = loaded.loadImgs(loaded.getImgIds())
    assert [each["file_name"] for each in images] == ["a.png", "in/b.png"]
    for image in images:
        mask = read(Path("out", image["file_name"]).with_suffix("").as_posix() + "_mask.png")
        assert mask.shape == (image["height"], image["width"])
        drawn = np.full(mask.shape, 255, np.uint8)
        for each in loaded.loadAnns(loaded.getAnnIds(imgIds=image["id"])):
            region = loaded.annToMask(each).astype(bool)
            assert (region == (mask == each["category_id"] - 1)).all()
            assert each["area"] == region.sum()
            x, y, width, height = each["bbox"]
            rows, columns = np.nonzero(region)
            assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            drawn[region] = each["category_id"] - 1
        assert (drawn == mask).all()


def test_polygons_as_asked_for(predict: Run) -> None:
    image = picture("a.png")
    assert predict(image, "--save", "geojson", "--min-area", "20", "--tolerance", "2").code == 0
    assert tree("out") == ["a.geojson", "zoo_seg_predict.json"]
    features = json.loads(Path("out/a.geojson").read_text("ascii"))["features"]
    polygons = expected(image).polygons(min_area=20, tolerance=2)
    assert [each["properties"]["area"] for each in features] == [each.area for each in polygons]
    assert len(polygons) < len(expected(image).polygons()) or polygons != expected(image).polygons()


@pytest.mark.parametrize("arguments", [["--save", "mask"], ["--no-overlay"]])
def test_no_overlay_is_short_for_mask(arguments: list[str], predict: Run) -> None:
    assert predict(picture("a.png"), *arguments).code == 0
    assert predict("a.png", "--save", "mask").out == "1 already there; results in out\n"
    assert predict("a.png", "--no-overlay").out == "1 already there; results in out\n"


def test_the_default_is_mask_and_overlay(predict: Run) -> None:
    predict(picture("a.png"))
    assert predict("a.png", "--save", "overlay, mask").out == "1 already there; results in out\n"
    assert predict("a.png", "--save", "mask,overlay,coco").out == "1 already there; results in out\n"
    assert len(load_coco("out/coco.json").anns) > 1  # made of what was kept


def test_the_report_names_the_files(predict: Run) -> None:
    predict(picture("a.png"), "--save", "geojson,confidence", "--json", "r.json")
    assert json.loads(Path("r.json").read_text())["done"] == [
        {
            "picture": "a.png",
            "mask": None,
            "overlay": None,
            "confidence": "out/a_confidence.png",
            "geojson": "out/a.geojson",
        }
    ]


# --- what is kept and done again ------------------------------------------------------------------


def contents() -> dict[str, tuple[bytes, int]]:
    return {name: (Path("out", name).read_bytes(), Path("out", name).stat().st_ino) for name in tree("out")}


def test_what_is_there_is_kept(predict: Run) -> None:
    picture("p/a.png")
    picture("p/b.png", seed=1)
    predict("p", "--save", EVERYTHING)
    before = contents()
    assert predict("p", "--save", EVERYTHING).out == "2 already there; results in out\n"
    assert contents() == before  # the very files


def test_files_that_are_missing_or_cut_short(predict: Run) -> None:
    damages = [(name, kind) for kind in ENDINGS for name in ("missing", "empty", "cut")]
    for number, (damage, kind) in enumerate(damages):
        picture(f"p/{damage}_{kind}.png", number)
    picture("p/whole.png")
    predict("p", "--save", EVERYTHING)
    before = {name: Path("out", name).read_bytes() for name in tree("out")}
    for damage, kind in damages:
        path = Path(f"out/{damage}_{kind}{ENDINGS[kind]}")
        whole = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes(whole[: 0 if damage == "empty" else len(whole) - 4])
    assert predict("p", "--save", EVERYTHING).out == "15 done, 1 already there; results in out\n"
    assert {name: Path("out", name).read_bytes() for name in tree("out")} == before


@pytest.mark.parametrize("kind", ["geojson", "labelme", "coco"])
def test_annotations_that_were_mended_are_never_lost(kind: str, predict: Run) -> None:
    image = picture("a.png")
    predict(image, "--save", EVERYTHING)
    path = Path("out/coco.json" if kind == "coco" else f"out/a{ENDINGS[kind]}")
    mended = path.read_text("ascii").replace("wall", "well")
    assert mended != path.read_text("ascii")
    path.write_text(mended, "ascii")
    for more in ([], ["--overwrite"]):
        result = predict(image, "--save", EVERYTHING, *more)
        assert result.code == 2
        assert f"{path} was not written by zoo-seg predict; move it away, or choose another --out" in result.err
        assert path.read_text("ascii") == mended


def test_a_labelme_file_of_the_user_s_is_never_replaced(predict: Run) -> None:
    picture("p/a.png")
    Path("p/a.json").write_text('{"version": "5.5.0", "shapes": []}')
    result = predict("p", "--save", "labelme", "--out", "p")
    assert (result.code, Path("p/a.json").read_text()) == (2, '{"version": "5.5.0", "shapes": []}')


def test_coco_is_whole_after_an_interruption(predict: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate("abc"):
        picture(f"p/{name}.png", number)
    write = verb._write

    def stop(data: bytes, address: str) -> None:
        if "c_" in address:
            raise KeyboardInterrupt
        write(data, address)

    with monkeypatch.context() as patched:
        patched.setattr("zoo_seg.cli.predict._write", stop)
        assert predict("p", "--save", "coco").code == 130
    assert not Path("out/coco.json").exists()
    assert predict("p", "--save", "coco").out == "1 done, 2 already there; results in out\n"
    loaded = load_coco("out/coco.json")
    assert [each["file_name"] for each in loaded.loadImgs(loaded.getImgIds())] == ["a.png", "b.png", "c.png"]
    assert {each["image_id"] for each in loaded.anns.values()} == {1, 2, 3}


def test_coco_follows_its_masks(predict: Run) -> None:
    picture("p/a.png", seed=0)
    picture("p/b.png", seed=1)
    predict("p", "--save", "coco")
    first = Path("out/coco.json").read_bytes()
    picture("p/b.png", seed=2)
    assert predict("p", "--save", "coco").out == "1 done, 1 already there; results in out\n"
    assert Path("out/coco.json").read_bytes() != first
    Path("out/coco.json").unlink()
    assert predict("p", "--save", "coco").out == "2 already there; results in out\n"
    assert len(load_coco("out/coco.json").imgs) == 2


def test_coco_holds_what_could_be_done(predict: Run) -> None:
    picture("p/a.png")
    Path("p/b.png").write_bytes(b"no image")
    for _ in range(2):
        assert predict("p", "--save", "coco").code == 1
        assert [each["file_name"] for each in load_coco("out/coco.json").imgs.values()] == ["a.png"]


def test_other_kinds_are_other_settings(predict: Run) -> None:
    image = picture("a.png")
    predict(image, "--save", "mask,geojson", "--tolerance", "1")
    for arguments, said in (
        (["--save", "mask,geojson"], "tolerance 1.0 (now not given)"),
        ([], "save 'geojson,mask' (now not given)"),
    ):
        result = predict(image, *arguments)
        assert result.code == 2
        assert said in result.err
    assert predict(image, "--overwrite").code == 0


def test_results_of_before_these_options_are_kept(predict: Run) -> None:
    """Their marks and settings know no --save."""
    image = picture("a.png")
    predict(image)
    settings = json.loads(Path("out/zoo_seg_predict.json").read_text())
    assert not {"save", "min_area", "tolerance"} & set(settings)


# --- what cannot be done --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--save", "masks"], "--save 'masks': did you mean 'mask'?"),
        (["--save", "mask,tiff"], "--save 'tiff': known are overlay, confidence, geojson, labelme, mask, coco"),
        (["--save", ""], "--save ''"),
        (["--save", "mask", "--no-overlay"], "--no-overlay is short for --save mask"),
        (["--tolerance", "1"], "--tolerance is for polygons; add --save geojson or --save labelme"),
        (["--save", "geojson", "--min-area", "-1"], "min_area is -1.0; expected a number of pixels, at least 0"),
        (["--save", "coco", "--out", ".", "--json", "coco.json"], "--json coco.json is where predict writes COCO's"),
        (["--save", "coco", "--engine", "ray"], "leave out --engine ray"),
    ],
)
def test_mistakes_cost_no_download(
    arguments: list[str], says: str, predict: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "load_predicting", lambda _: pytest.fail("it was loaded"))
    monkeypatch.setattr(verb, "weights_sha256", lambda _: pytest.fail("they were fetched"))
    result = predict(picture("a.png"), *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert result.err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("kind", "module"), [("geojson", "rasterio.features"), ("labelme", "shapely"), ("coco", "pycocotools")]
)
def test_without_the_extra_the_command_is_named(
    kind: str, module: str, predict: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "load_predicting", lambda _: pytest.fail("it was loaded"))
    monkeypatch.setitem(sys.modules, module, None)
    result = predict(picture("a.png"), "--save", kind)
    assert (result.code, result.out) == (1, "")
    assert "pip install 'zoo_seg[results]'" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("name", ["coco", "zoo_seg_predict"])
def test_an_image_called_like_the_run_s_own_file(name: str, predict: Run) -> None:
    picture(f"p/{name}.png")
    picture("p/a.png")
    result = predict("p", "--save", "labelme,coco")
    assert (result.code, result.out) == (1, "1 done, 1 failed; results in out\n")
    assert f"its results would overwrite the run's own file (out/{name}.json); rename it" in result.err


def test_a_confidence_image_is_no_image_to_predict(predict: Run) -> None:
    picture("p/a.png")
    assert predict("p", "--out", "p", "--save", "confidence").out == "1 done; results in p\n"
    assert predict("p", "--out", "p", "--save", "confidence").out == "1 already there; results in p\n"


def test_a_mark_is_of_the_content() -> None:
    import io

    from zoo_seg.scale.marks import marked_json, read_mark

    mark = hashlib.sha256(b"").hexdigest()
    made = marked_json({"a": [1, "ä"]}, mark)
    assert json.loads(made)["a"] == [1, "ä"]
    assert read_mark(io.BytesIO(made)) == mark
    assert read_mark(io.BytesIO(made[:-1])) == ""
    assert read_mark(io.BytesIO(made.replace(b"[1", b"[2"))) is None
    assert read_mark(io.BytesIO(b'{"zoo_seg": 3}')) is None
