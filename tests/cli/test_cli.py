"""`zoo-seg` as its users meet it: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Zoo
from helpers.cli import Result, Run, runner
from helpers.drawn import picture
from PIL import Image

import zoo_seg

VERBS = ["list", "info", "download", "verify", "predict"]
SETTINGS = "zoo_seg_predict.json"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def tree(folder: Path) -> list[str]:
    """The files of a folder, but for the one that remembers the settings."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != SETTINGS)
    return sorted(path.relative_to(folder).as_posix() for path in files)


# --- list and info ------------------------------------------------------------------------------


def test_list_prints_a_table(run: Run) -> None:
    result = run("list")
    assert (result.code, result.err) == (0, "")
    head, rule, *rows = result.out.splitlines()
    assert head.split()[:3] == ["id", "data", "set"]
    assert set(rule) == {"-", " "}
    assert "pspnet_resnet50_os8.ade20k_ssseg" in result.out
    assert rows[-1].startswith(f"{len(zoo_seg.list_weights())} weights")
    row = next(row for row in rows if row.startswith("semanticfpn_resnet50.cityscapes_mmseg"))
    cells = row.split()
    assert cells[:6] == ["semanticfpn_resnet50.cityscapes_mmseg", "cityscapes", "mmseg", "19", "28.5", "M"]
    assert cells[-1] == "74.52"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], lambda: zoo_seg.list_weights()),
        (["--model", "pspnet_r50*"], lambda: zoo_seg.list_weights(model="pspnet_resnet50*")),
        (["--dataset", "voc", "--sort", "miou"], lambda: zoo_seg.list_weights(dataset="voc", sort="miou")),
        (["--source", "mmseg", "--min-miou", "40"], lambda: zoo_seg.list_weights(source="mmseg", min_miou=40)),
        (["--max-parameters", "28.5"], lambda: zoo_seg.list_weights(max_parameters=28_500_000)),
        (["--max-gmacs", "10"], lambda: zoo_seg.list_weights(max_multiply_adds=10**10)),
        (["--dataset", "ade20k", "--best"], lambda: zoo_seg.list_weights(dataset="ade20k", best=True)),
        (["--sort", "gmacs"], lambda: zoo_seg.list_weights(sort="multiply_adds")),
        (["--min-miou", "99"], list),
    ],
)
def test_list_filters_and_sorts(arguments: list[str], expected: Callable[[], list[zoo_seg.Weights]], run: Run) -> None:
    ids = [record.id for record in expected()]
    result = run("list", *arguments)
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()[2:-2]] == ids
    records = json.loads(run("list", *arguments, "--json").out)
    assert [record["id"] for record in records] == ids


def test_json_holds_everything(run: Run) -> None:
    record, *_ = json.loads(run("list", "--model", "pspnet_r101_os8", "--dataset", "voc", "--json").out)
    assert record == json.loads(run("info", "pspnet_r101_os8.voc", "--json").out)
    assert record["miou"] == 79.04
    assert len(record["classes"]) == 21
    assert record["test"]["mode"] == "whole"
    assert record["rules"]["average"] == "logits"


def test_info_tells_what_matters(run: Run) -> None:
    result = run("info", "semantic_fpn_r50.cityscapes_mmseg")
    assert (result.code, result.err) == (0, "")
    for fact in (
        "semanticfpn_resnet50.cityscapes_mmseg",
        "74.52 % on val (reported; whole",
        "76.08 % on val (reported",
        "80000 iterations",
        "512x1024 (height x width)",
        "download.openmmlab.com",
        "claims 94018a0d... (not enforced)",
        "Apache-2.0",
        "Cityscapes terms",
        "18 bicycle",
    ):
        assert fact in result.out, fact
    assert "not stated by the publisher" in run("info", "fcn_r50_os8.voc").out


def test_info_of_a_model_lists_its_weights(run: Run) -> None:
    out = run("info", "semanticfpn_r101").out
    assert out.startswith("semanticfpn_resnet101\n")
    assert "Semantic FPN on ResNet-101-c, output stride 32" in out
    assert re.findall(r"semanticfpn_resnet101\.(\w+)", out) == [
        record.tag for record in zoo_seg.list_weights(model="semanticfpn_resnet101")
    ]
    listed = json.loads(run("info", "semanticfpn_r101", "--json").out)
    assert [record["id"] for record in listed] == [record.id for record in zoo_seg.list_weights("semanticfpn_r101")]


def test_info_of_little_known_weights(run: Run, zoo: Zoo) -> None:
    for line in (run("info", "toy_r50.toys"), run("info", "toy_r50"), run("list")):
        assert line.code == 0
        assert "None" not in line.out


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help(verb: str | None, run: Run) -> None:
    result = run(*([verb] if verb else []), "--help")
    assert (result.code, result.err) == (0, "")
    assert all(word in result.out for word in ([f"zoo-seg {verb}"] if verb else [*VERBS, "ZOO_SEG_HOME", "exit code"]))


# --- download and verify ------------------------------------------------------------------------


def test_download_into_the_cache(run: Run, zoo: Zoo, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("download", "toy_r50.toys", "toy_r50.games_me")
    assert (first.code, first.err) == (0, "")
    (toys, path, sha256), (games, *_) = (line.split("  ") for line in first.out.splitlines())
    assert (toys, games) == ("toy_r50.toys_me", "toy_r50.games_me")
    assert sha256 == f"sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
    assert home in Path(path).parents
    assert Path(path).read_bytes() == (zoo.mirror / "toys.pth").read_bytes()
    monkeypatch.delenv("ZOO_SEG_MIRROR")  # and now there is no source
    assert run("download", "toy_r50.toys", "toy_r50.games_me") == first


def test_download_for_a_machine_without_network(
    run: Run, zoo: Zoo, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick = tmp_path / "USB stick"
    result = run("download", "toy_r50.toys_me", "--to", stick)
    assert result.code == 0
    assert f"ZOO_SEG_MIRROR={stick}" in result.out
    assert not list(home.rglob("*.pth"))
    assert "toys.pth" in (stick / "SHA256SUMS").read_text()
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(stick))
    assert run("download", "toy_r50.toys_me").code == 0
    assert [path.name for path in home.rglob("*.pth")] == ["toys.pth"]


def test_download_goes_on_past_a_failure(
    run: Run, zoo: Zoo, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toys.pth").write_bytes((zoo.mirror / "toys.pth").read_bytes())
    (tmp_path / "games.pth").write_text("<html>Please log in</html>")
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(tmp_path))
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    result = run("download", "toy_r50.games", "toy_r50.toys")
    assert result.code == 1
    assert result.out.startswith("toy_r50.toys_me  ")
    assert "toy_r50.games_me" in result.err
    assert "a web page" in result.err
    assert "1 of 2" in result.err
    everything = run("download", "--all")
    count = len(zoo_seg.list_weights())  # all but the toy and the packaged one are out of reach
    assert everything.code == 1
    assert f"{count - 2} of {count}" in everything.err
    assert [path.name for path in home.rglob("*.pth")] == ["toys.pth"]


def test_verify_sets_a_damaged_file_aside(run: Run, zoo: Zoo, home: Path) -> None:
    assert run("verify") == Result(0, f"nothing is cached in {home}\n", "")
    run("download", "toy_r50.toys", "toy_r50.games")
    good = run("verify")
    assert good.code == 0
    assert [line.split()[:3] for line in good.out.splitlines()[2:]] == [
        ["ok", "toy_r50.games_me", "games.pth"],
        ["ok", "toy_r50.toys_me", "toys.pth"],
    ]
    path = next(home.rglob("toys.pth"))
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk would leave it
    bad = run("verify")
    assert bad.code == 1
    assert re.search(r"^damaged +toy_r50.toys_me", bad.out, re.M)
    assert re.search(r"^ok +toy_r50.games_me", bad.out, re.M)
    assert not path.exists()
    assert path.with_name("toys.pth.damaged").exists()
    assert run("verify").code == 0
    assert run("download", "toy_r50.toys").code == 0
    assert path.read_bytes() == content


# --- predict ------------------------------------------------------------------------------------


@pytest.fixture
def predict(run: Run, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`zoo-seg predict` with the toy weights, writing to `out`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def predict(*arguments: str | Path) -> Result:
        out = [] if "--out" in arguments else ["--out", "out"]
        return run("predict", *arguments, "--model", "toy_r50", "--weights", "toys", *out)

    return predict


def test_predict_writes_class_ids_and_an_overlay(predict: Run, tmp_path: Path) -> None:
    path = picture(Path("street.jpg"), width=75, height=50)
    result = predict(path)
    assert (result.code, result.err, result.out) == (0, "", "1 done; results in out\n")
    assert tree(tmp_path / "out") == ["street_mask.png", "street_overlay.png"]
    expected = zoo_seg.create_model("toy_r50", "toys").predict(path)
    with Image.open("out/street_mask.png") as mask, Image.open("out/street_overlay.png") as overlay:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == [10, 20, 30, 200, 0, 0, 0, 0, 200]
        assert np.array_equal(np.asarray(mask), expected.mask)
        assert len(np.unique(expected.mask)) > 1
        assert np.array_equal(np.asarray(overlay), np.asarray(expected.overlay()))


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"flip": True}, ["--flip"]),
        ({"resize": None}, ["--resize", "none"]),
        ({"resize": 1}, ["--resize", "1"]),
        ({"scales": (0.5, 1.5)}, ["--scales", "0.5", "1.5"]),
        ({"mode": "slide"}, ["--mode", "slide"]),
        (
            {"mode": "slide", "crop": (32, 40), "stride": (16, 16)},
            ["--mode", "slide", "--crop", "32", "40", "--stride", "16", "16"],
        ),
        ({"dtype": "bfloat16", "device": "cpu"}, ["--dtype", "bfloat16", "--device", "cpu"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_are_those_of_predict(options: dict[str, object], arguments: list[str], predict: Run) -> None:
    path = picture(Path("street.png"), width=75, height=50)
    assert predict(path, *arguments, "--no-overlay", "--batch-size", "3").code == 0
    assert not Path("out/street_overlay.png").exists()
    expected = zoo_seg.create_model("toy_r50", "toys").predict(path, **options)
    assert np.array_equal(np.asarray(Image.open("out/street_mask.png")), expected.mask)


def test_legend_stands_beside_the_overlay(predict: Run) -> None:
    picture(Path("street.png"), width=75, height=50)
    assert predict("street.png", "--legend", "--alpha", "0").code == 0
    with Image.open("out/street_overlay.png") as overlay, Image.open("street.png") as street:
        assert overlay.width > 75
        assert overlay.height >= 50
        assert np.array_equal(np.asarray(overlay)[:50, :75], np.asarray(street))


def test_folders_keep_their_tree_and_a_broken_picture_stops_nothing(predict: Run, tmp_path: Path) -> None:
    names = ["a.png", "sub folder/ä é.jpg", "sub folder/deep/日本.PNG", "z.bmp"]
    for seed, name in enumerate(names):
        picture(tmp_path / "my images" / name, seed=seed)
    broken = tmp_path / "my images" / "broken.png"
    broken.write_bytes((tmp_path / "my images" / "a.png").read_bytes()[:60])
    (tmp_path / "my images" / "notes.txt").write_text("no image")

    result = predict("my images")
    assert result.code == 1
    assert result.err.startswith(f"zoo-seg: {Path('my images/broken.png')}: cannot be read")
    assert result.err.count("\n") == 1
    assert result.out == "4 done, 1 failed; results in out\n"
    stems = ["a", "sub folder/deep/日本", "sub folder/ä é", "z"]
    masks = [tmp_path / "out" / f"{stem}_mask.png" for stem in stems]
    assert tree(tmp_path / "out") == sorted(f"{stem}_{kind}.png" for stem in stems for kind in ("mask", "overlay"))

    before = [mask.stat().st_mtime_ns for mask in masks]
    again = predict("my images")
    assert (again.code, again.out) == (1, "4 already there, 1 failed; results in out\n")
    picture(broken)
    repaired = predict("my images")
    assert (repaired.code, repaired.out, repaired.err) == (0, "1 done, 4 already there; results in out\n", "")
    assert [mask.stat().st_mtime_ns for mask in masks] == before


def test_a_run_with_nothing_to_do_loads_no_network(predict: Run, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(Path("a.png"))
    assert predict("a.png").code == 0
    monkeypatch.setattr("zoo_seg.cli.predict.load_predicting", None)
    assert predict("a.png") == Result(0, "1 already there; results in out\n", "")


def test_a_changed_picture_is_done_again(predict: Run) -> None:
    picture(Path("a.png"))
    predict("a.png")
    os.utime("a.png", (2**31, 2**31))
    assert predict("a.png").out.startswith("1 done")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("p/*.png", ["a"]), ("p/**/*.png", ["a", "q/b"]), ("p/*/b.*", ["q/b"]), ("*/[ab].png", ["p/a"])],
)
def test_globs(pattern: str, expected: list[str], predict: Run, tmp_path: Path) -> None:
    picture(Path("p/a.png"))
    picture(Path("p/q/b.png"))
    for given in (pattern, str(tmp_path / pattern)):
        assert predict(given, "--no-overlay", "--overwrite").code == 0
        assert tree(tmp_path / "out") == [f"{stem}_mask.png" for stem in expected]


def test_a_name_that_looks_like_a_glob_is_a_file(predict: Run, tmp_path: Path) -> None:
    picture(Path("a[1].png"))
    assert predict("a[1].png", "--no-overlay").code == 0
    assert tree(tmp_path / "out") == ["a[1]_mask.png"]


def test_two_pictures_of_one_name_are_reported(predict: Run, tmp_path: Path) -> None:
    picture(Path("p/a.jpg"))
    picture(Path("p/a.png"))
    result = predict("p", "p/a.jpg", "--no-overlay")
    assert (result.code, result.out) == (1, "1 done, 1 failed; results in out\n")
    assert f"{Path('p/a.png')}: would overwrite the result of {Path('p/a.jpg')}" in result.err


def test_other_settings_do_not_mix(predict: Run) -> None:
    picture(Path("a.png"))
    predict("a.png")
    mask = Path("out/a_mask.png")
    before = mask.stat().st_mtime_ns
    result = predict("a.png", "--flip", "--legend")
    assert (result.code, result.out) == (2, "")
    assert "flip as published (now True)" in result.err
    assert "legend False (now True)" in result.err
    assert mask.stat().st_mtime_ns == before
    assert predict("a.png", "--flip", "--overwrite").out == "1 done; results in out\n"
    assert mask.stat().st_mtime_ns > before
    assert predict("a.png", "--flip", "--batch-size", "2").out == "1 already there; results in out\n"


@pytest.mark.parametrize("out", ["p", "p/out", "p/q/out", "."])
def test_results_among_the_pictures_are_not_predicted(out: str, predict: Run, tmp_path: Path) -> None:
    picture(Path("p/a.png"))
    picture(Path("p/q/face_mask.png"))  # a user's image, whatever it is called
    assert predict("p", "--out", out).out == f"2 done; results in {Path(out)}\n"
    for name in ("a_mask.png", "a_overlay.png", "q/face_mask_mask.png", "q/face_mask_overlay.png"):
        assert (tmp_path / out / name).is_file()
    before = tree(tmp_path)
    again = predict("p", "--out", out)
    assert again.code == 0
    assert "done" not in again.out
    assert predict("p/**/*.png", "--out", out).code == 0
    assert tree(tmp_path) == before


def test_a_file_of_the_user_s_is_never_overwritten(predict: Run) -> None:
    picture(Path("p/a.jpg"))
    label = picture(Path("p/a_mask.png"), seed=1)
    before = label.read_bytes()
    picture(Path("p/b.jpg"))
    assert predict("p/b.jpg", "--out", "p").code == 0  # the folder holds results as well
    for more in ([], ["--overwrite"], ["--no-overlay", "--overwrite"]):
        result = predict("p/a.jpg", "--out", "p", *more)
        assert result.code == 2
        assert "a_mask.png was not written by zoo-seg" in result.err
        assert label.read_bytes() == before
        assert not Path("p/a_overlay.png").exists()


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"flip": true}'])
def test_damaged_settings_do_not_stop_a_run(damage: str, predict: Run) -> None:
    picture(Path("a.png"))
    Path("out").mkdir()
    (Path("out") / SETTINGS).write_text(damage)
    result = predict("a.png")
    assert result.code == (2 if "flip" in damage else 0)
    assert predict("a.png", "--overwrite").code == 0
    assert json.loads((Path("out") / SETTINGS).read_text())["flip"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--weights", "toy_r50.toys"],
        ["--weights", "toy_r50.toys_me"],
        ["--weights", "toy_r50.toys_me", "--model", "toy_r50"],
        ["--weights", "mine.pth", "--model", "toy_r50"],
    ],
    ids=" ".join,
)
def test_ways_to_name_the_weights(
    arguments: list[str], run: Run, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pth").write_bytes((zoo.mirror / "toys.pth").read_bytes())
    picture(Path("a.png"))
    assert run("predict", "a.png", "--out", "out", *arguments).code == 0
    assert tree(tmp_path / "out") == ["a_mask.png", "a_overlay.png"]


# --- careless command lines ---------------------------------------------------------------------

CARELESS: list[tuple[str, int, str]] = [
    # (what is typed in a folder with p/a.png, note.txt and the empty folder nothing; the exit code; what is said)
    ("", 2, "VERB"),
    ("lst", 2, "invalid choice: 'lst'"),
    ("list voc", 2, "unrecognized arguments: voc"),
    ("list --dataset coco", 2, "there is no data set 'coco'"),
    ("list --model ''", 2, "there is no model ''"),
    ("list --model pspnet", 2, "did you mean 'pspnet_"),
    ("list --sort speed", 2, "invalid choice: 'speed'"),
    ("list --min-miou high", 2, "invalid float value: 'high'"),
    ("list --max-parameters nan", 2, "expected millions"),
    ("list --max-parameters 1e999", 2, "expected millions"),
    ("list --max-gmacs nan", 2, "expected billions"),
    ("list --max-seconds -1", 2, "expected seconds"),
    ("info", 2, "required: ID"),
    ("info pspnet_resnet50_os8.ade", 2, "its tags are ade20k"),
    ("info pspnet_resnet50_os8.", 2, "its tags are ade20k"),
    ("info pspnet_resnet5_os8", 2, "did you mean 'pspnet_resnet50_os8'"),
    ("info ''", 2, "there is no model ''"),
    ("info toy_r50.toys.me", 2, "its tags are"),
    ("download", 2, "or pass --all"),
    ("download --all toy_r50.toys", 2, "not both"),
    ("download toy_r50", 2, "such as 'toy_r50."),
    ("download toy_r50.toys toy_r50.nothing", 2, "no weights 'nothing'"),
    ("download toy_r50.toys --to ''", 2, "empty"),
    ("download toy_r50.toys --to note.txt", 1, "note.txt"),
    ("verify toys", 2, "unrecognized arguments"),
    ("predict", 2, "required: PATH"),
    ("predict p --out o --weights toys", 2, "needs a --model"),
    ("predict p --out o --weights toys.pth", 2, "needs a --model"),
    ("predict p --out o --weights ~/toys.pth", 2, "needs a --model"),
    ("predict p --out o --weights toy_r50.nothing", 2, "its tags are games, toys, toys_me"),
    ("predict p --out o --model toy --weights toys", 2, "did you mean 'toy_r50'"),
    ("predict p --out o --model fcn_r50_os8 --weights toy_r50.toys", 2, "no weights 'toy_r50.toys'"),
    ("predict p --out o --model toy_r50 --weights ''", 2, "no weights ''"),
    ("predict p --out o --model toy_r50 --weights missing.pth", 1, "there is no file 'missing.pth'"),
    ("predict p --out o --model toy_r50 --weights note.txt", 1, "note.txt"),
    ("predict p --out o --model toy_r50 --weights p/a.png", 1, "a.png"),
    ("predict p --out o --model toy_r50 --weights http://zoo.invalid/x.pth", 2, "expected https://"),
    ("predict p --out o --model toy_r50 --weights file:///missing.pth", 1, "missing.pth"),
    ("predict p --out o --model pspnet_r50_os8 --weights {mirror}/toys.pth", 1, "does not fit"),
    ("{toy} p --crop 0 0", 2, "'0' is not a whole number of at least 1"),
    ("{toy} p --crop 32", 2, "expected 2 arguments"),
    ("{toy} p --crop 32 32", 2, "mode is 'whole'"),
    ("{toy} p --mode slide --crop 32 32 --stride 64 64", 2, "larger than crop"),
    ("{toy} p --mode tiles", 2, "invalid choice: 'tiles'"),
    ("{toy} p --scales 0", 2, "expected positive numbers"),
    ("{toy} p --scales 50 100", 2, "such as 0.5 1 1.5; found 100"),
    ("{toy} p --scales nan", 2, "expected positive numbers"),
    ("{toy} p --scales 0.5,1", 2, "invalid float value: '0.5,1'"),
    ("{toy} p --resize 0", 2, "'0' is not a whole number"),
    ("{toy} p --resize 100000", 2, "100000 is more pixels than an image's side may have, 32768"),
    ("{toy} p --resize 30000", 1, "p/a.png: an image of 30x40 pixels would become one of 30000x40000"),
    ("{toy} p --overwite", 2, "unrecognized arguments: --overwite; did you mean --overwrite?"),
    ("finetune --data p --out o --learning-rate 1", 2, "did you mean --lr?"),
    ("{toy} p --resize 512x512", 2, "'512x512' is not a whole number"),
    ("{toy} p --batch-size -1", 2, "'-1' is not a whole number"),
    ("{toy} p --alpha 3", 2, "from 0 to 1"),
    ("{toy} p --alpha nan", 2, "from 0 to 1"),
    ("{toy} p --device gpu", 2, "device 'gpu' cannot be used"),
    ("{toy} p --device cuda:99", 2, "here there is cpu"),
    ("{toy} p --dtype int8", 2, "invalid choice: 'int8'"),
    ("{toy} ''", 2, "empty"),
    ("{toy} missing.png", 1, "there is no such file"),
    ("{toy} note.txt", 1, "Dear diary: there is no such file"),
    ("{toy} nothing", 1, "holds no images"),
    ("{toy} *.tiff", 1, "*.tiff: no file matches this pattern"),
    ("predict p --out note.txt --weights toy_r50.toys", 2, "note.txt is a file"),
    ("predict p --out note.txt/o --weights toy_r50.toys", 1, "note.txt"),
]


@pytest.mark.parametrize(("line", "code", "message"), CARELESS, ids=[line or "nothing" for line, _, _ in CARELESS])
def test_a_mistake_gets_one_message(
    line: str, code: int, message: str, run: Run, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(Path("p/a.png"))
    Path("note.txt").write_text("Dear diary")
    Path("nothing").mkdir()
    toy = "predict --out o --weights toy_r50.toys"
    words = [word.format(toy=toy, mirror=zoo.mirror).replace("''", "") for word in line.split(" ") if word]
    words = [part for word in words for part in (word.split(" ") if word.startswith("predict ") else [word])]
    result = run(*words)
    assert result.code == code, result
    assert message in result.err
    assert len(re.findall("^zoo-seg", result.err, re.M)) == 1
    assert result.err.startswith("zoo-seg")
    assert len(result.err) < 2500
    assert not list(Path().rglob("*_mask.png"))


# --- in a process of its own --------------------------------------------------------------------


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_finding_and_fetching_load_no_torch(zoo: Zoo, tmp_path: Path) -> None:
    code = """
import sys
import zoo_seg
from zoo_seg.cli import main
zoo_seg.get_weights("fcn_r50_os8", "voc"), dir(zoo_seg)
lines = [["list"], ["list", "--json"], ["info", "fcn_r50_os8"], ["info", "fcn_r50_os8.voc"],
         ["download", "toy_r50.toys"], ["download", "toy_r50.toys", "--to", "site"], ["verify"]]
codes = [main(line) for line in lines]
heavy = {"torch", "torchvision", "timm", "huggingface_hub"} & set(sys.modules)
print(codes, heavy, file=sys.stderr)
"""
    result = python("-c", code, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "[0, 0, 0, 0, 0, 0, 0] set()\n")


def test_module_ends_with_the_exit_code(tmp_path: Path) -> None:
    assert python("-m", "zoo_seg", "--version", cwd=tmp_path).stdout == f"zoo_seg {zoo_seg.__version__}\n"
    result = python("-m", "zoo_seg", "info", "nothing", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("zoo-seg: error: there is no mod")


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`zoo-seg list --json | head -1`"""
    command = [sys.executable, "-m", "zoo_seg", "list", "--json"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
