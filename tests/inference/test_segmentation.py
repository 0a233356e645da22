from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo_seg.errors import ImageError, OptionError
from zoo_seg.inference.segmentation import Segmentation

NAMES = ("road", "sky", "car", "tree")
COLOURS = ((128, 64, 128), (70, 130, 180), (0, 0, 142), (107, 142, 35))
MASK = np.array([[1, 1, 1, 1, 1], [3, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.uint8)  # 8 road, 6 sky, 1 tree
PICTURE = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)


def many(count: int, height: int, width: int) -> Segmentation:
    """`count` classes in turn, each with a colour of its own."""
    mask = (np.arange(height * width) % count).astype(np.uint16 if count > 256 else np.uint8).reshape(height, width)
    colours = tuple((i % 256, i // 256, 7) for i in range(count))
    picture = np.zeros((height, width, 3), np.uint8)
    return Segmentation(mask, tuple(f"class number {i}" for i in range(count)), colours, picture)


def colours_in(image: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in image.getcolors(image.width * image.height)}


# --- what is in it ------------------------------------------------------------------------------


def test_areas_are_the_shares_of_the_present_classes_largest_first() -> None:
    areas = Segmentation(MASK, NAMES, COLOURS).areas()
    assert list(areas.items()) == [("road", 8 / 15), ("sky", 6 / 15), ("tree", 1 / 15)]


def test_areas_add_classes_of_one_name() -> None:
    areas = Segmentation(MASK, ("road", "plant", "car", "plant"), COLOURS).areas()
    assert list(areas) == ["road", "plant"]
    assert areas["plant"] == pytest.approx(7 / 15)
    assert sum(areas.values()) == pytest.approx(1)


def test_areas_are_sorted_after_adding() -> None:
    mask = np.array([[0, 0, 0, 1, 1, 2, 2]], np.uint8)
    assert list(Segmentation(mask, ("a", "b", "b"), COLOURS[:3]).areas()) == ["b", "a"]


def test_areas_beyond_256_classes() -> None:
    areas = many(300, 30, 40).areas()
    assert len(areas) == 300
    assert areas["class number 299"] == pytest.approx(1 / 300)


def test_repr_is_short() -> None:
    assert repr(Segmentation(MASK, NAMES, COLOURS)) == "<Segmentation 5x3 pixels: road 53.3 %, sky 40.0 %, tree 6.7 %>"
    assert repr(many(300, 30, 40)).endswith("class number 2 0.3 %, and 297 more>")


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ((MASK.astype(np.int64), NAMES, COLOURS), r"the mask is int64 of shape \(3, 5\), expected uint8 or uint16"),
        ((MASK[None], NAMES, COLOURS), r"of shape \(1, 3, 5\), expected .*\(H, W\)"),
        ((MASK[:0], NAMES, COLOURS), r"of shape \(0, 5\)"),
        ((MASK, NAMES, COLOURS[:3]), "4 classes but 3 palette colours"),
        ((MASK, NAMES[:3], COLOURS[:3]), "class id 3, but there are 3 classes"),
        ((MASK, NAMES, COLOURS, PICTURE[:2]), r"image's shape is \(2, 5, 3\), expected the mask's: \(3, 5, 3\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: Any, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        Segmentation(*parts)


# --- images of it -----------------------------------------------------------------------------


def test_colorize_paints_each_pixel_in_its_class_colour() -> None:
    image = Segmentation(MASK, NAMES, COLOURS).colorize()
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.array(COLOURS)[MASK])
    large = many(300, 30, 40)
    np.testing.assert_array_equal(np.asarray(large.colorize()), np.array(large.palette)[large.mask])


def test_overlay_blends_picture_and_colours() -> None:
    segmentation = Segmentation(MASK, NAMES, COLOURS, PICTURE)
    np.testing.assert_array_equal(np.asarray(segmentation.overlay(0)), PICTURE)
    np.testing.assert_array_equal(np.asarray(segmentation.overlay(1)), np.asarray(segmentation.colorize()))
    quarter = PICTURE * 0.75 + np.array(COLOURS)[MASK] * 0.25
    assert np.abs(np.asarray(segmentation.overlay(0.25)) - quarter).max() <= 1


def test_overlay_says_what_it_needs() -> None:
    segmentation = Segmentation(MASK, NAMES, COLOURS, PICTURE)
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(OptionError, match=r"alpha is .*expected a number from 0"):
            segmentation.overlay(alpha)
    with pytest.raises(ImageError, match=r"no image to draw over; use colorize\(\)"):
        Segmentation(MASK, NAMES, COLOURS).overlay()


def test_legend_shows_the_present_classes_only() -> None:
    colours = colours_in(Segmentation(MASK, NAMES, COLOURS).legend())
    assert {COLOURS[0], COLOURS[1], COLOURS[3]} <= colours
    assert COLOURS[2] not in colours


def test_legend_shows_each_class_of_one_name() -> None:
    segmentation = Segmentation(MASK, ("same",) * 4, COLOURS)
    assert {COLOURS[0], COLOURS[1], COLOURS[3]} <= colours_in(segmentation.legend())


def test_legend_lists_the_largest_class_first() -> None:
    legend = np.asarray(Segmentation(MASK, NAMES, COLOURS).legend())
    tops = [np.argwhere((legend == COLOURS[index]).all(axis=2))[:, 0].min() for index in (0, 1, 3)]
    assert tops == sorted(tops)
    assert len(set(tops)) == 3


def test_legend_writes_the_names() -> None:
    def dark_pixels(name: str) -> int:
        legend = Segmentation(np.zeros((1, 1), np.uint8), (name,), ((255, 0, 0),)).legend()
        return int((np.asarray(legend).max(axis=2) < 60).sum())

    assert 0 == dark_pixels("") < dark_pixels("i") < dark_pixels("building")


def test_legend_grows_with_the_font_and_a_long_name_is_cut() -> None:
    segmentation = Segmentation(MASK, NAMES, COLOURS)
    small, large = segmentation.legend(font_size=12), segmentation.legend(font_size=36)
    assert large.width > 2 * small.width
    assert large.height > 2 * small.height
    long = Segmentation(MASK, ("w" * 60 + "\nsecond line",) * 4, COLOURS).legend()
    longer = Segmentation(MASK, ("w" * 6000,) * 4, COLOURS).legend()
    assert long.size == longer.size
    with pytest.raises(OptionError, match="font_size is 0"):
        segmentation.legend(font_size=0)


def test_a_long_legend_has_columns_and_misses_no_class() -> None:
    segmentation = many(300, 30, 40)
    legend = segmentation.legend(height=700)
    assert legend.height <= 700
    assert set(segmentation.palette) <= colours_in(legend)


def test_overlay_with_a_legend_keeps_the_picture() -> None:
    segmentation = many(100, 200, 320)
    both = segmentation.overlay(legend=True)
    np.testing.assert_array_equal(np.asarray(both)[:200, :320], np.asarray(segmentation.overlay()))
    assert set(segmentation.palette) <= colours_in(both.crop((320, 0, *both.size)))


def test_a_picture_of_one_pixel() -> None:
    one = Segmentation(np.zeros((1, 1), np.uint8), ("a rather long class name",), ((9, 8, 7),), PICTURE[:1, :1])
    assert one.areas() == {"a rather long class name": 1.0}
    assert one.overlay().size == one.colorize().size == (1, 1)
    both = one.overlay(legend=True)
    assert both.width > 100
    assert (9, 8, 7) in colours_in(both)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 4, 16, 21, 256])
def test_saved_png_holds_class_ids_and_the_palette(tmp_path: Path, classes: int) -> None:
    segmentation = many(classes, 16, 24)
    path = segmentation.save(tmp_path / "new" / "folder" / "mask.png")
    with Image.open(path) as image:
        assert image.mode == "P"
        assert path.read_bytes()[24] == 8  # bits: fewer are legal, but not every reader unpacks them
        np.testing.assert_array_equal(np.asarray(image), segmentation.mask)
        palette = image.getpalette() or []
        assert palette == [c for colour in segmentation.palette for c in colour] + [0] * (768 - 3 * classes)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(segmentation.colorize()))
    assert [file.name for file in path.parent.iterdir()] == ["mask.png"]


def test_a_uint16_mask_of_few_classes_is_saved_as_a_palette_png(tmp_path: Path) -> None:
    path = Segmentation(MASK.astype(np.uint16), NAMES, COLOURS).save(str(tmp_path / "mask.PNG"))
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), MASK)


def test_beyond_256_classes_the_png_has_16_bits(tmp_path: Path) -> None:
    segmentation = many(300, 16, 24)
    path = segmentation.save(tmp_path / "mask.png")
    assert path.read_bytes()[24:26] == bytes([16, 0])  # 16 bits, grey
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), segmentation.mask)


@pytest.mark.parametrize("name", ["mask.jpg", "mask", "mask.png.gif"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"saved as PNG only; write 'mask.*\.png'"):
        Segmentation(MASK, NAMES, COLOURS).save(tmp_path / "out" / name)
    assert not (tmp_path / "out").exists()


def test_a_failed_save_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"old")

    def fail(self: Image.Image, target: Path, **options: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        Segmentation(MASK, NAMES, COLOURS).save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
