"""What `zoo-seg predict --out` keeps, does again and refuses to touch, when it finds files of before."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import Run
from helpers.drawn import picture
from PIL import Image

import zoo_seg
from zoo_seg.manifest import Preprocess

SETTINGS = Path("out/zoo_seg_predict.json")
MASK = Path("out/a_mask.png")


def trained(folder: str, seed: int, **changes: object) -> None:
    """What `finetune` leaves of a network."""
    torch.manual_seed(seed)
    model = zoo_seg.build_model("fcn", "lcnet_050", 3, channels=8).eval()
    for name, value in changes.items():
        setattr(model, name, value)
    model.save_pretrained(folder)


def mask_of(network: str, image: Path) -> np.ndarray:
    return zoo_seg.from_pretrained(network).predict(image).mask


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# --- another network ----------------------------------------------------------------------------


def test_a_network_that_was_trained_anew_predicts_anew(predict: Run) -> None:
    image = picture("a.png")
    trained("mine", 0)
    assert predict(image, "--weights", "mine").out == "1 done; results in out\n"
    first = mask_of("mine", image)
    assert predict(image, "--weights", "mine").out == "1 already there; results in out\n"
    trained("mine", 1)
    assert (mask_of("mine", image) != first).any()
    assert predict(image, "--weights", "mine").out == "1 done; results in out\n"
    assert (read(MASK) == mask_of("mine", image)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ("ground", "wall", "sky")},
        {"palette": ((1, 1, 1), (2, 2, 2), (3, 3, 3))},
        {"preprocess": Preprocess((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), None)},
        {"protocol": "mmseg"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_rules_beside_the_same_parameters_count_as_well(changes: dict[str, object], predict: Run) -> None:
    image = picture("a.png")
    trained("mine", 0)
    predict(image, "--weights", "mine")
    trained("mine", 0, **changes)
    assert predict(image, "--weights", "mine").out == "1 done; results in out\n"
    assert predict(image, "--weights", "mine").out == "1 already there; results in out\n"


def test_a_weight_file_that_was_replaced(predict: Run) -> None:
    image = picture("a.png")
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(zoo_seg.create_model("toy_r50", num_classes=3).state_dict(), "mine.pth")
        command = [image, "--model", "toy_r50", "--weights", "mine.pth"]
        assert predict(*command).out == "1 done; results in out\n"
        assert predict(*command).out == "1 already there; results in out\n"


def test_a_run_that_was_stopped_within_overwrite_does_the_rest(predict: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are those of the new run by then, but the second mask is the old run's."""
    picture("p/a.png")
    picture("p/b.png")
    predict("p")
    write = zoo_seg.cli.predict._write

    def stop(image: Image.Image, address: str, **options: object) -> None:
        if "b_" in address:
            raise KeyboardInterrupt
        write(image, address, **options)

    with monkeypatch.context() as patched:
        patched.setattr("zoo_seg.cli.predict._write", stop)
        assert predict("p", "--flip", "--overwrite").code == 130
    assert predict("p", "--flip").out == "1 done, 1 already there; results in out\n"


# --- another image ----------------------------------------------------------------------------


def test_an_older_picture_in_its_place(predict: Run) -> None:
    image = picture("a.bmp", seed=0)
    predict(image)
    picture("a.bmp", seed=1)
    os.utime(image, (1e9, 1e9))
    assert predict(image).out == "1 done; results in out\n"
    assert (read(MASK) == zoo_seg.create_model("toy_r50", "toys").predict(image).mask).all()
    assert predict(image).out == "1 already there; results in out\n"


def test_a_picture_of_the_same_name_size_and_date_in_another_folder(predict: Run) -> None:
    for seed, folder in enumerate("pq"):
        os.utime(picture(f"{folder}/a.bmp", seed), (1e9, 1e9))
    predict("p")
    assert predict("q").out == "1 done; results in out\n"
    assert (read(MASK) == zoo_seg.create_model("toy_r50", "toys").predict("q/a.bmp").mask).all()


@pytest.mark.parametrize("name", ["a_mask.png", "a_overlay.png"])
@pytest.mark.parametrize("size", [0, 400])
def test_a_result_that_was_cut_short(name: str, size: int, predict: Run) -> None:
    image = picture("a.png")
    predict(image)
    whole = (Path("out") / name).read_bytes()
    assert len(whole) > 400
    (Path("out") / name).write_bytes(whole[:size])
    assert predict(image).out == "1 done; results in out\n"
    assert (Path("out") / name).read_bytes() == whole


# --- files of others ----------------------------------------------------------------------------


def test_a_mask_that_was_mended_by_hand_is_kept(predict: Run) -> None:
    image = picture("a.png")
    predict(image)
    mended = read(MASK).copy()
    mended[:5] = 2
    Image.fromarray(mended).save(MASK)
    before = MASK.read_bytes()
    for more in ([], ["--overwrite"]):
        result = predict(image, *more)
        assert result.code == 2
        assert result.err.count("\n") == 1
        assert f"{MASK} was not written by zoo-seg predict; move it away, or choose another --out" in result.err
        assert MASK.read_bytes() == before


def test_a_picture_that_is_only_called_like_a_result_is_predicted(predict: Run) -> None:
    picture("p/a.png")
    predict("p", "--out", "p")
    picture("p/face_mask.png")
    assert predict("p", "--out", "p").out == "1 done, 1 already there; results in p\n"
    assert Path("p/face_mask_mask.png").is_file()
    assert predict("p", "--out", "p").out == "2 already there; results in p\n"


def test_settings_are_not_written_through_a_link(predict: Run) -> None:
    image = picture("a.png")
    Path("precious.json").write_text("mine")
    SETTINGS.parent.mkdir()
    SETTINGS.symlink_to(Path("precious.json").absolute())
    assert predict(image).code == 0
    assert Path("precious.json").read_text() == "mine"
    assert json.loads(SETTINGS.read_text())["flip"] is None
    assert not SETTINGS.is_symlink()


def test_a_report_replaces_nothing_but_a_report(predict: Run) -> None:
    image = picture("a.png")
    trained("mine", 0)
    config = Path("mine/config.json").read_bytes()
    result = predict(image, "--weights", "mine", "--json", "mine/config.json")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "--json mine/config.json is there and no report of zoo-seg predict; choose another name" in result.err
    assert Path("mine/config.json").read_bytes() == config
    assert not SETTINGS.exists()
    assert predict(image, "--json", SETTINGS).code == 2
    assert not SETTINGS.exists()
    assert predict(image, "--json", "mine").code == 2
    Path("r.json").touch()
    for kind in ("done", "kept"):
        assert predict(image, "--json", "r.json").code == 0
        assert [row["picture"] for row in json.loads(Path("r.json").read_text())[kind]] == ["a.png"]


# --- what is named ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["missing.png", "empty", "*.tiff", "missing.txt", "missing/"])
def test_what_is_missing_does_not_stop_the_others(missing: str, predict: Run) -> None:
    Path("empty").mkdir()
    picture("p/a.png")
    result = predict(missing, "p", "--no-overlay")
    assert (result.code, result.out) == (1, "1 done, 1 failed; results in out\n")
    assert result.err.startswith(f"zoo-seg: {Path(missing)}: ")
    assert result.err.count("\n") == 1
    assert MASK.is_file()


def test_a_list_of_pictures(predict: Run, tmp_path: Path) -> None:
    picture("p/a.png")
    picture("p/ä b.png")
    picture("../elsewhere/c.png")
    text = f"\ufeff# mine\np/a.png\r\n\n  p/ä b.png\np/a.png\n{tmp_path.parent}/elsewhere/c.png\np/none.png\np\ns3://b/d.png\n"
    Path("list.txt").write_text(text, encoding="utf-8", newline="")
    result = predict("list.txt", "p/a.png", "--no-overlay")
    assert (result.code, result.out) == (1, "3 done, 3 failed; results in out\n")
    assert result.err.splitlines() == [
        "zoo-seg: p/none.png: there is no such file; check the path",
        "zoo-seg: p: is a folder; expected an image",
        "zoo-seg: s3://b/d.png: is a URL, which the cluster's workers read; add --engine ray",
    ]
    outside = f"{str(tmp_path.parent)[1:]}/elsewhere/c_mask.png"
    for name in ("p/a_mask.png", "p/ä b_mask.png", outside):
        assert (tmp_path / "out" / name).is_file()
    assert predict("list.txt", "--no-overlay").out == "3 already there, 3 failed; results in out\n"


@pytest.mark.parametrize(
    ("content", "words"), [(b"\n# nothing\n", "names no images"), (bytes(range(256)), "is no text file")]
)
def test_a_list_that_names_nothing(content: bytes, words: str, predict: Run) -> None:
    Path("list.txt").write_bytes(content)
    result = predict("list.txt", picture("a.png"))
    assert result.code == 1
    assert result.out.startswith("1 done, 1 failed")
    assert f"list.txt: {words}" in result.err
