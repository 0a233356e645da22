"""Masks of one's own as they come: suffixes, lists, no splits, black and white, other numbers, CVAT's colours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.drawn import draw_folder, index_picture
from PIL import Image

from zoo_seg.cli import main
from zoo_seg.data import SegmentationData, open_data
from zoo_seg.data.check import check_data
from zoo_seg.data.labels import voc_palette
from zoo_seg.errors import DataError, OptionError
from zoo_seg.training.finetune import finetune


def everything(data: SegmentationData, *splits: str) -> dict[str, list[list[int]]]:
    """The labels of each image by its file's name."""
    return {
        sample.image.name: data.read_labels(sample).tolist()
        for split in splits or data.splits
        for sample in data.samples(split)
    }


def beside(root: Path, suffix: str, *, splits: bool) -> Path:
    """Move what `draw_folder` has drawn so that masks lie beside images; without splits they get other names."""
    for split in ("train", "val"):
        folder = root / split if splits else root
        folder.mkdir(exist_ok=True)
        for image in sorted((root / "images" / split).iterdir()):
            name = image.stem if splits else f"{split}_{image.stem}"
            (root / "masks" / split / f"{image.stem}.png").rename(folder / f"{name}{suffix}.png")
            image.rename(folder / f"{name}{image.suffix}")
    shutil.rmtree(root / "images")
    shutil.rmtree(root / "masks")
    return root


def flat(root: Path) -> Path:
    """images/NAME and masks/NAME without splits."""
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            for path in sorted((root / kind / split).iterdir()):
                path.rename(root / kind / f"{split}_{path.name}")
            (root / kind / split).rmdir()
    return root


@pytest.mark.parametrize("suffix", ["_mask", "_L", "_mine"])
@pytest.mark.parametrize("images", [".jpg", ".png"])
def test_masks_beside_their_images(suffix: str, images: str, tmp_path: Path) -> None:
    expected = everything(open_data(draw_folder(tmp_path, suffix=images)))
    beside(tmp_path, suffix, splits=True)
    data = open_data(tmp_path, mask_suffix="_mine" if suffix == "_mine" else None)
    assert (data.layout, data.splits) == ("folder", ("train", "val"))
    assert everything(data) == expected
    assert data.notes == (() if suffix == "_mine" else (f"masks are the files whose names end in {suffix!r}",))
    assert check_data(data, progress=False).errors == ()


@pytest.mark.parametrize("suffix", ["_mask", "_L", "_mine"])
def test_masks_with_a_suffix_in_a_folder_of_their_own(suffix: str, tmp_path: Path) -> None:
    expected = everything(open_data(draw_folder(tmp_path)))
    for path in sorted(tmp_path.glob("masks/*/*.png")):
        path.rename(path.with_stem(path.stem + suffix))
    assert everything(open_data(tmp_path, mask_suffix="_mine" if suffix == "_mine" else None)) == expected


def test_the_folders_of_splits_may_stand_first(tmp_path: Path) -> None:
    expected = everything(open_data(draw_folder(tmp_path)))
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / kind / split).rename(tmp_path / split / kind)
    (tmp_path / "images").rmdir()
    (tmp_path / "masks").rmdir()
    assert everything(open_data(tmp_path)) == expected


def test_a_mask_without_image_is_no_image_without_mask(tmp_path: Path) -> None:
    beside(draw_folder(tmp_path, suffix=".png"), "_mask", splits=True)
    (tmp_path / "train" / "001.png").unlink()
    report = check_data(open_data(tmp_path), progress=False)
    assert report.errors == ()
    assert "train: 1 mask without image, not used: train/001_mask.png" in report.warnings


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("{name}", "."),
        ("{name}", "splits"),
        ("images/{name}.jpg", "."),
        ("{name}.jpg", "splits"),
        ("images/{name}.jpg masks/{name}.png", "."),
        ("/images/{name}.jpg,/masks/{name}.png", "splits"),
    ],
)
def test_lists_divide_what_lies_in_one_folder(line: str, place: str, tmp_path: Path) -> None:
    expected = everything(open_data(draw_folder(tmp_path)), "val")
    flat(tmp_path)
    (tmp_path / place).mkdir(exist_ok=True)
    for split in ("train", "val"):
        names = sorted(path.stem for path in tmp_path.glob(f"images/{split}_*"))
        text = "".join(line.format(name=name) + "\n" for name in names)
        (tmp_path / place / f"{split}.txt").write_text(f"# listed\n\n{text}")
    data = open_data(tmp_path)
    assert data.splits == ("train", "val")
    assert list(everything(data, "val").values()) == list(expected.values())
    (tmp_path / place / "val.txt").write_text("nowhere\n")
    with pytest.raises(DataError, match=r"val: 1 listed, but not there: nowhere"):
        open_data(tmp_path).samples("val")


def test_lists_of_masks_beside_images(tmp_path: Path) -> None:
    beside(draw_folder(tmp_path), "_L", splits=False)
    for split in ("train", "val"):
        names = sorted(path.stem for path in tmp_path.glob(f"{split}_*.jpg"))
        (tmp_path / f"{split}.txt").write_text("\n".join(names))
    data = open_data(tmp_path)
    assert [len(data.samples(split)) for split in data.splits] == [4, 2]


def test_val_is_a_fraction_that_does_not_move(tmp_path: Path) -> None:
    flat(draw_folder(tmp_path, train=30, val=10))
    assert open_data(tmp_path).splits == ("all",)
    before = open_data(tmp_path, val_fraction=0.25)
    assert before.splits == ("train", "val")
    assert 4 <= len(before.samples("val")) <= 16
    held = {sample.name for sample in before.samples("val")}
    for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
        for number in range(20):
            shutil.copy(tmp_path / kind / f"val_000{suffix}", tmp_path / kind / f"new_{number}{suffix}")
    after = open_data(tmp_path, val_fraction=0.25)
    assert {sample.name for sample in after.samples("val") if not sample.name.startswith("new")} == held
    assert not {sample.name for sample in after.samples("val")} & {sample.name for sample in after.samples("train")}
    larger = open_data(tmp_path, val_fraction=0.5)
    assert {sample.name for sample in larger.samples("val")} > {sample.name for sample in after.samples("val")}


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_of_few_images_each_split_has_one(fraction: float, tmp_path: Path) -> None:
    data = open_data(flat(draw_folder(tmp_path, train=1, val=1)), val_fraction=fraction)
    assert [len(data.samples(split)) for split in ("train", "val")] == [1, 1]


def test_train_alone_is_divided_and_val_never_twice(tmp_path: Path) -> None:
    draw_folder(tmp_path, train=9)
    with pytest.raises(OptionError, match="has a val split; leave out val_fraction"):
        open_data(tmp_path, val_fraction=0.3)
    for kind in ("images", "masks"):
        shutil.rmtree(tmp_path / kind / "val")
    report = check_data(open_data(tmp_path), progress=False)
    assert report.errors[0].startswith("there is no split 'val'; --val-fraction 0.2")
    data = open_data(tmp_path, val_fraction=0.3)
    assert len(data.samples("train")) + len(data.samples("val")) == 9
    assert check_data(data, progress=False).errors == ()


@pytest.mark.slow
def test_a_network_is_trained_and_measured_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = beside(draw_folder(tmp_path / "data", train=8, val=4), "_mine", splits=False)
    options = {"mask_suffix": "_mine", "val_fraction": 0.3}
    finetune(
        data, "fcn", backbone="test_resnet", channels=8, out=tmp_path / "run", epochs=1, batch_size=2, lr=0.001,
        crop_size=(64, 64), device="cpu", **options,
    )  # fmt: skip
    val = len(open_data(data, **options).samples("val"))
    assert f"{12 - val} images of train, {val} of val" in capsys.readouterr().err
    arguments = ["evaluate", "--weights", str(tmp_path / "run"), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--mask-suffix", "_mine", "--val-fraction", "0.3", "--device", "cpu"]) == 0
    assert f"val, {val} images" in capsys.readouterr().out


def black_and_white(root: Path, *, classes: int = 2, other: int | None = None, **description: Any) -> Path:
    draw_folder(root, classes=2)
    for number, path in enumerate(sorted(root.glob("masks/*/*.png"))):
        ids = np.asarray(Image.open(path)).copy()
        ids[ids == 255] = 0
        ids *= 255
        if other is not None and number == 5:
            ids[0, 0] = other
        index_picture(ids).save(path)
    names = ["ground", "road", "sky"][:classes]
    (root / "dataset.json").write_text(json.dumps({"classes": names, **description}))
    return root


@pytest.mark.parametrize("description", [{}, {"ignore_index": 255}, {"ignore_index": 200}])
def test_black_and_white_masks_of_two_classes(
    description: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_data(black_and_white(tmp_path, **description))
    for sample in data.samples("train"):
        stored = np.asarray(Image.open(sample.mask))
        np.testing.assert_array_equal(data.read_labels(sample), stored == 255)
    assert main(["check-data", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "note: masks hold 0 and 255 only: 255 is 'road'" in out
    assert "255 road" in out


@pytest.mark.parametrize("change", [{"classes": 3}, {"other": 1}, {"other": 7}])
def test_white_is_no_class_where_it_may_be_something_else(change: dict[str, Any], tmp_path: Path) -> None:
    data = open_data(black_and_white(tmp_path, **change))
    assert data.notes == ()
    assert set(np.unique(data.read_labels(data.samples("train")[0]))) == {0, 255}


def test_the_message_about_white_can_be_followed(tmp_path: Path) -> None:
    black_and_white(tmp_path, classes=3)
    (message, *_) = check_data(open_data(tmp_path), progress=False).errors
    assert '"map": {"255": "road"}' in message
    text = '{"classes": ["ground", "road", "sky"], "map": {"255": "road"}}'
    (tmp_path / "dataset.json").write_text(text)
    data = open_data(tmp_path)
    assert set(np.unique(data.read_labels(data.samples("train")[0]))) == {0, 1}
    assert check_data(data, progress=False).errors == ()


def remapped(root: Path, **description: Any) -> SegmentationData:
    Image.new("RGB", (4, 2)).save(_folder(root / "images" / "train") / "a.png")
    index_picture(np.array([[0, 7, 8, 9], [255, 1, 2, 300]])).save(_folder(root / "masks" / "train") / "a.png")
    (root / "dataset.json").write_text(json.dumps(description, indent=1))
    return open_data(root)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_stored_values_are_mapped_to_classes(tmp_path: Path) -> None:
    """What a class with an entry is stored as otherwise (1, "road") is an error, as what no one names."""
    mapping = {"7": "road", "8": "road", "9": "ignored", "300": "ignored"}
    data = remapped(tmp_path, classes=["ground", "road", "sky"], map=mapping)
    with pytest.raises(
        DataError, match=r"the value 1 is no class; allowed are 0, 2, 7, 8, and 9, 255, 300 \(ignored\)"
    ):
        everything(data)
    data = remapped(tmp_path, classes=["ground", "road", "sky"], map={**mapping, "1": "sky"})
    with pytest.raises(DataError, match="the value 2 is no class"):
        everything(data)
    data = remapped(tmp_path, classes=["ground", "road", "sky"], map={**mapping, "1": "sky", "2": "sky"})
    assert everything(data) == {"a.png": [[0, 1, 1, 255], [255, 2, 2, 255]]}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"7": "raod"}, r"dataset.json:\d+: map\.7: found \"raod\", expected one of 'classes', or 'ignored'"),
        ({"7": 1}, r"map\.7: found 1, expected one of"),
        ({"seven": "road"}, r"map\.seven: found \"seven\", expected a value that masks store"),
        ({"70000": "road"}, "expected a value that masks store, from 0 to 65535"),
        ([7], "map: found .*, expected an object"),
    ],
)
def test_a_wrong_map_is_told_with_its_line(mapping: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        remapped(tmp_path, classes=["ground", "road"], map=mapping)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0}, "val_fraction is 0, expected a share between 0 and 1"),
        ({"val_fraction": 1.5}, "val_fraction is 1.5"),
        ({"mask_suffix": ""}, "mask_suffix is ''"),
        ({"mask_suffix": "a/b"}, "mask_suffix is 'a/b'"),
    ],
)
def test_careless_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        open_data(draw_folder(tmp_path, train=1, val=1), **options)


# --- CVAT ---------------------------------------------------------------------------------------

COLOURS = {"ground": (0, 0, 0), "thing 1": (250, 50, 83), "thing 2": (51, 221, 255)}
PALETTE = [channel for colour in COLOURS.values() for channel in colour] + [9, 9, 9]


def as_rgb(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.array([*COLOURS.values(), (9, 9, 9)], np.uint8)[np.minimum(ids, 3)])


def as_palette(ids: np.ndarray) -> Image.Image:
    """The same colours, behind other indices."""
    image = index_picture(3 - np.minimum(ids, 3))
    image.putpalette([channel for first in (9, 6, 3, 0) for channel in PALETTE[first : first + 3]])
    return image


def segmentation_mask_export(root: Path, draw: Callable[[np.ndarray], Image.Image]) -> Path:
    """CVAT's "Segmentation mask 1.1"."""
    drawn = draw_folder(root / "drawn", train=3, val=0)
    lists = _folder(root / "out" / "ImageSets" / "Segmentation")
    for image in sorted((drawn / "images" / "train").iterdir()):
        shutil.copy(image, _folder(root / "out" / "JPEGImages") / image.name)
        ids = np.asarray(Image.open(drawn / "masks" / "train" / f"{image.stem}.png")).copy()
        ids[ids == 255] = 0
        draw(ids).save(_folder(root / "out" / "SegmentationClass") / f"{image.stem}.png")
    (lists / "default.txt").write_text("000\n001\n002\n")
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in COLOURS.items()]
    (root / "out" / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    return root / "out"


@pytest.mark.parametrize("draw", [as_rgb, as_palette])
def test_colours_are_those_of_the_labelmap(draw: Callable[[np.ndarray], Image.Image], tmp_path: Path) -> None:
    root = segmentation_mask_export(tmp_path, draw)
    data = open_data(root)
    assert (data.layout, data.classes, data.splits) == ("cvat", tuple(COLOURS), ("all",))
    assert data.palette == tuple(COLOURS.values())
    for sample in data.samples("all"):
        expected = np.asarray(Image.open(tmp_path / "drawn" / "masks" / "train" / sample.mask.name)) % 255
        np.testing.assert_array_equal(data.read_labels(sample), expected)
    assert check_data(open_data(root, val_fraction=0.4), progress=False).errors == ()
    (root / "dataset.json").write_text('{"map": {"ground": "ignored", "thing 2": "pet"}}')
    data = open_data(root)
    assert data.classes == ("thing 1", "pet")
    assert set(np.unique(data.read_labels(data.samples("all")[0]))) == {0, 1, 255}
    (root / "dataset.json").write_text('{"classes": ["x", "y"], "map": {"thing 1": "x", "thing 2": "y"}}')
    message = r"the colour \(0, 0, 0\) is no class; allowed are \(250, 50, 83\), .*set 'ignore_color' to"
    with pytest.raises(DataError, match=message):
        everything(open_data(root))


def test_a_mask_without_colours_has_none_of_another(tmp_path: Path) -> None:
    """An index of 0 or 1 in grey would be black, and a colour that nobody named."""
    root = segmentation_mask_export(tmp_path, index_picture)
    with pytest.raises(DataError, match=r"\(1, 1, 1\).* no class"):
        everything(open_data(root))


def test_a_wrong_labelmap_is_told_with_its_line(tmp_path: Path) -> None:
    root = segmentation_mask_export(tmp_path, as_rgb)
    for line, message in (("cat 1,2,3", "'cat 1,2,3' is no label"), ("cat:0,0,0::", "for the second time")):
        (root / "labelmap.txt").write_text(f"ground:0,0,0::\n{line}\n")
        with pytest.raises(DataError, match=f"labelmap.txt:2: .*{message}"):
            open_data(root)


def test_camvid_as_cvat_exports_it(tmp_path: Path) -> None:
    drawn = open_data(draw_folder(tmp_path / "drawn", masks="rgb"))
    root = tmp_path / "out"
    for split in ("train", "val"):
        lines = []
        for sample in drawn.samples(split):
            name = f"{sample.name}.jpg"
            shutil.copy(sample.image, _folder(root / split) / name)
            shutil.copy(sample.mask, _folder(root / f"{split}annot") / sample.mask.name)
            lines.append(f"/{split}/{name} /{split}annot/{sample.mask.name}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    colours = [*zip(drawn.classes, voc_palette(3), strict=True), ("Void", (255, 255, 255))]
    (root / "label_colors.txt").write_text("".join(f"{r} {g} {b} {name}\n" for name, (r, g, b) in colours))
    (root / "dataset.json").write_text('{"map": {"Void": "ignored"}}')
    data = open_data(root)
    assert (data.layout, data.classes, data.splits) == ("cvat", drawn.classes, ("train", "val"))
    assert list(everything(data).values()) == list(everything(drawn).values())
