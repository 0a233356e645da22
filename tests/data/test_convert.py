"""`zoo-seg convert-data`: any data set as images, masks and dataset.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.drawn import draw_ade20k, draw_cityscapes, draw_folder, draw_voc
from PIL import Image

from zoo_seg.cli import main
from zoo_seg.data import convert, open_data
from zoo_seg.data.check import check_data
from zoo_seg.data.convert import convert_data
from zoo_seg.errors import DataError, OptionError


def shares(root: Path) -> dict[tuple[str, str], float]:
    """Of each class in each split, by name."""
    found: dict[tuple[str, str], float] = {}
    for split in check_data(open_data(root), progress=False).splits:
        for value in split.values:
            found[split.name, value.meaning] = found.get((split.name, value.meaning), 0) + value.share
    return found


def draw_many_classes(root: Path) -> Path:
    return draw_folder(root, classes=300, train=2, val=1)


@pytest.mark.parametrize("draw", [draw_folder, draw_voc, draw_ade20k, draw_cityscapes, draw_many_classes])
def test_what_is_written_is_what_was_read(
    draw: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = draw(tmp_path / "source")
    assert main(["convert-data", str(source), str(tmp_path / "out")]) == 0
    assert f"zoo-seg check-data {tmp_path / 'out'}" in capsys.readouterr().out
    before, after = open_data(source), open_data(tmp_path / "out")
    assert (after.layout, after.classes, after.palette) == ("folder", before.classes, before.palette)
    assert shares(tmp_path / "out") == pytest.approx(shares(source))
    for split in before.splits:
        for old, new in zip(before.samples(split), after.samples(split), strict=True):
            assert old.name == new.name
            assert old.image.samefile(new.image)
            np.testing.assert_array_equal(before.read_labels(old), after.read_labels(new))


def test_options_of_the_source_go_along(tmp_path: Path) -> None:
    source = draw_folder(tmp_path / "source", train=9, val=0)
    for path in source.glob("masks/train/*.png"):
        path.rename(path.with_stem(f"{path.stem}_mine"))
    arguments = ["convert-data", str(source), str(tmp_path / "out"), "--mask-suffix", "_mine", "--val-fraction", "0.3"]
    assert main(arguments) == 0
    data = open_data(tmp_path / "out")
    assert len(data.samples("train")) + len(data.samples("val")) == 9


def test_nothing_of_anyones_is_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = draw_folder(tmp_path / "source", train=1, val=1), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(["convert-data", str(source), str(out)]) == 2
    assert f"{out} is not empty; expected a new folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").rename(tmp_path / "out.unfinished")
    with pytest.raises(OptionError, match=r"out.unfinished was made from something else"):
        convert_data(open_data(source), out, progress=False)
    (tmp_path / "out.unfinished").unlink()
    convert_data(open_data(source), out, progress=False)
    assert not (tmp_path / "out.unfinished").exists()


def test_a_broken_mask_ends_the_work_and_what_was_written_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = draw_folder(tmp_path / "source", train=4), tmp_path / "out"
    mask = source / "masks" / "val" / "001.png"
    content = mask.read_bytes()
    mask.write_bytes(content[:60])
    with pytest.raises(DataError, match=r"001\.png: cannot be read"):
        convert_data(open_data(source), out, progress=False)
    assert not out.exists()
    mask.write_bytes(content)
    (tmp_path / "out.unfinished" / "masks" / "killed.png.part").touch()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.unfinished").glob("masks/*/*.png")}
    assert written
    convert_data(open_data(source), out, progress=False)
    assert {out / path.relative_to(tmp_path / "out.unfinished"): time for path, time in written.items()}.items() <= {
        path: path.stat().st_mtime_ns for path in out.glob("masks/*/*.png")
    }.items()
    assert shares(out) == pytest.approx(shares(source))
    assert not list(out.rglob("*.part"))


def test_another_source_does_not_go_on(tmp_path: Path) -> None:
    source, out = draw_folder(tmp_path / "source", train=1, val=1), tmp_path / "out"
    other = draw_folder(tmp_path / "other", train=1, val=1)
    (source / "masks" / "val" / "000.png").write_bytes(b"")
    with pytest.raises(DataError):
        convert_data(open_data(source), out, progress=False)
    with pytest.raises(OptionError, match="made from something else; remove it"):
        convert_data(open_data(other), out, progress=False)


def test_images_are_copied_where_links_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(convert.os, "link", refuse)
    source = draw_folder(tmp_path / "source", train=1, val=1)
    convert_data(open_data(source), tmp_path / "out", progress=False)
    one, two = (root / "images" / "train" / "000.jpg" for root in (source, tmp_path / "out"))
    assert one.read_bytes() == two.read_bytes()
    assert not one.samefile(two)


def test_black_and_white_masks_become_ids(tmp_path: Path) -> None:
    source = draw_folder(tmp_path / "source", classes=2)
    for path in source.glob("masks/*/*.png"):
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.where(ids == 1, 255, 0).astype(np.uint8)).save(path)
    (source / "dataset.json").write_text(json.dumps({"classes": ["ground", "road"]}))
    convert_data(open_data(source), tmp_path / "out", progress=False)
    data = open_data(tmp_path / "out")
    assert data.notes == ()
    assert set(np.unique(np.asarray(Image.open(data.samples("train")[0].mask)))) == {0, 1}
    assert shares(tmp_path / "out") == pytest.approx(shares(source))
