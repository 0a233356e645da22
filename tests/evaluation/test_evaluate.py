"""`zoo-seg evaluate`: a published number measured again, in every layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import toy_manifest
from helpers.drawn import IGNORED, draw_ade20k, draw_cityscapes, draw_folder, draw_voc, scenes
from PIL import Image

from zoo_seg import SegmentationModel, build_model
from zoo_seg.cli import main
from zoo_seg.data.layouts import open_data
from zoo_seg.errors import DataError, OptionError
from zoo_seg.evaluation.measure import measure

PICTURES, SIZE = 3, (48, 64)
SEVERAL = {"mode": "whole", "scales": [0.5, 1.5], "flip": True}
Ids = npt.NDArray[Any]


@dataclass(frozen=True)
class Kind:
    """A layout as drawn: how, and with which seed its val split."""

    draw: Callable[..., Path]
    seed: int
    dataset: str
    num_classes: int


KINDS = {
    "voc": Kind(draw_voc, 1, "voc", 21),
    "ade20k": Kind(draw_ade20k, 1, "ade20k", 150),
    "cityscapes": Kind(draw_cityscapes, 1, "cityscapes", 19),
    "folder": Kind(draw_folder, 1, "drawn", 3),
}
DRAWN = {"classes": ["ground", "thing 1", "thing 2"], "palette": [[0, 0, 0], [128, 0, 0], [0, 128, 0]]}


# --- a network for each, and what it really reaches -----------------------------------------------


def fitted(pictures: Sequence[Image.Image], ids: Sequence[Ids], num_classes: int) -> SegmentationModel:
    """A random network whose classifier is fitted to the images by least squares: far from right, far from chance."""
    torch.manual_seed(0)
    model = build_model("semanticfpn", "mobilenetv3_small_050", num_classes, channels=32).eval()
    inputs = [model.predictor().inputs(picture, resize=64)[0] for picture in pictures]
    classifier: Any = model.head.classifier
    features: list[torch.Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.inference_mode():
        for x in inputs:
            model(x)
    hook.remove()
    small = [F.interpolate(torch.from_numpy(each)[None, None].double(), features[0].shape[-2:]) for each in ids]
    x, y = torch.cat([each[0].flatten(1).T for each in features]), torch.cat([each.flatten().long() for each in small])
    x, y = x[y < num_classes], y[y < num_classes]
    ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    solution = torch.linalg.lstsq(ones.double(), F.one_hot(y, num_classes).double(), driver="gelsd").solution.float()
    with torch.no_grad():
        classifier.weight.copy_(solution[:-1].T[:, :, None, None])
        classifier.bias.copy_(solution[-1])
    return model


def miou(masks: Sequence[Ids], ids: Sequence[Ids], num_classes: int) -> float:
    """By the definition, in percent."""
    pred, truth = np.concatenate([each.ravel() for each in masks]), np.concatenate([each.ravel() for each in ids])
    pred, truth = pred[truth < num_classes], truth[truth < num_classes]
    pairs = [((pred == c) & (truth == c), (pred == c) | (truth == c)) for c in range(num_classes)]
    return 100 * float(np.mean([both.sum() / either.sum() for both, either in pairs if either.any()]))


@dataclass(frozen=True)
class Bench:
    """A data set in each layout, weights for it, and the mIoU they reach."""

    data: Path
    mirror: Path
    manifest: dict[str, Any]
    miou: dict[str, float]
    """By id, and `<id> several` for `SEVERAL`."""
    ids: dict[str, list[Ids]]
    masks: dict[str, list[Ids]]
    """By layout: the true class ids, and those predicted at a single scale."""


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    manifest = toy_manifest()
    toys = manifest["weights"].pop("toy_r50.toys_me")
    manifest["weights"] = {}
    network = {"family": "semanticfpn", "backbone": "mobilenetv3_small_050", "output_stride": 32}
    manifest["models"] = {"toy": {"title": "Toy", "architecture": network}}
    manifest["datasets"] = {"drawn": {**manifest["datasets"]["toys"], **DRAWN}}
    manifest["sources"]["mm"] = {**manifest["sources"]["me"], "protocol": "mmseg"}
    bench = Bench(folder, folder / "mirror", manifest, {}, {}, {})
    bench.mirror.mkdir()
    for layout, kind in KINDS.items():
        kind.draw(folder / layout, train=1, val=PICTURES, size=SIZE)
        num_classes = kind.num_classes
        pictures, ids = zip(*scenes(PICTURES, SIZE, num_classes, kind.seed), strict=True)
        model = fitted(pictures, ids, num_classes)
        torch.save({"epoch": 1, "model": model.state_dict()}, bench.mirror / f"{kind.dataset}.pth")
        samples = open_data(folder / layout).samples("val")
        bench.ids[layout] = list(ids)
        for source in ("me", "mm"):
            model.protocol = "mmseg" if source == "mm" else "ssseg"
            name, metrics = f"toy.{kind.dataset}_{source}", []
            for key, protocol in (("", toys["metrics"][0]["test"]), (" several", SEVERAL)):
                masks = [model.predict(sample.image, resize=64, **protocol).mask for sample in samples]
                bench.masks.setdefault(layout, masks)
                value = bench.miou[name + key] = miou(masks, ids, num_classes)
                metrics.append({**toys["metrics"][0], "value": round(value, 2), "test": protocol})
            manifest["weights"][name] = {
                **toys,
                "dataset": kind.dataset,
                "source": source,
                "files": [{"url": f"https://zoo.invalid/{kind.dataset}.pth"}],
                "preprocess": {**toys["preprocess"], **_imagenet(model)},
                "metrics": metrics,
            }
    return bench


def _imagenet(model: SegmentationModel) -> dict[str, Any]:
    return {"mean": model.preprocess.mean, "std": model.preprocess.std, "resize": {"short": 64, "long": 10000}}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str
    facts: dict[str, Any]


@pytest.fixture
def evaluate(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """`evaluate(layout, source, *options, published=...)` runs the command line in an empty folder."""
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(bench.mirror))
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(tmp_path / "mine.json"))
    monkeypatch.chdir(tmp_path)

    def evaluate(layout: str, source: str, *options: str | Path, add: float = 0.0) -> Result:
        manifest = json.loads(json.dumps(bench.manifest))
        for record in manifest["weights"].values():
            for metric in record["metrics"]:
                metric["value"] += add
        (tmp_path / "mine.json").write_text(json.dumps(manifest), encoding="utf-8")
        arguments = ["evaluate", "--data", bench.data / layout, "--out", "out", *options]
        if "--weights" not in options:
            arguments += ["--weights", f"toy.{KINDS[layout].dataset}_{source}"]
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert "unexpected" not in err
        facts = Path("out", "evaluation.json")
        return Result(code, out, err, json.loads(facts.read_text(encoding="utf-8")) if facts.exists() else {})

    return evaluate


Evaluate = Callable[..., Result]


# --- the published number, again ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", KINDS)
def test_reproduces_the_reported_number(layout: str, evaluate: Evaluate, bench: Bench) -> None:
    kind = KINDS[layout]
    name, num_classes = f"toy.{kind.dataset}_me", kind.num_classes
    result = evaluate(layout, "me")
    assert (result.code, result.err) == (0, "")
    truth = bench.miou[name]
    assert 5 < truth < 95
    assert result.facts["scores"]["mIoU"] == pytest.approx(truth, rel=1e-9)
    assert f"reported {truth:.2f}, measured {truth:.2f}, difference " in result.out
    assert "within the tolerance of 0.1" in result.out
    assert result.facts["verdict"] == "reproduced"
    assert (result.facts["data"]["layout"], result.facts["data"]["pictures"]) == (layout, PICTURES)
    assert [each["id"] for each in result.facts["classes"]] == list(range(num_classes))
    table = result.out.splitlines()[2 : 2 + num_classes]
    for line, facts in zip(table, result.facts["classes"], strict=True):
        iou = "-" if facts["IoU"] is None else f"{facts['IoU']:.2f}"
        assert line.split() == [str(facts["id"]), *facts["name"].split(), iou, *line.split()[-2:]]
    with Image.open("out/iou.png") as chart:
        assert chart.format == "PNG"
        assert min(chart.size) > 150
    # a label rule that was off by one would show
    shifted = [np.where(ids == IGNORED, IGNORED, (ids + 1) % num_classes) for ids in bench.ids[layout]]
    assert abs(miou(bench.masks[layout], shifted, num_classes) - truth) > 1


@pytest.mark.parametrize(
    ("add", "options", "code", "words"),
    [
        (0.5, [], 1, "difference -0.5"),
        (-0.5, [], 1, "outside the tolerance of 0.1"),
        (0.5, ["--tolerance", "1"], 0, "within the tolerance of 1"),
        (0.5, ["--limit", "2"], 0, "a part of the split says nothing about the tolerance"),
        (0.5, ["--limit", "99"], 1, "outside the tolerance of 0.1"),  # that is the whole split
    ],
)
def test_the_tolerance_decides(add: float, options: list[str], code: int, words: str, evaluate: Evaluate) -> None:
    result = evaluate("voc", "me", *options, add=add)
    assert result.code == code
    assert words in result.out
    verdict = {0: "reproduced", 1: "not reproduced"}[code] if options[:1] != ["--limit"] or code else None
    assert result.facts["verdict"] == verdict


@pytest.mark.slow
@pytest.mark.parametrize("source", ["me", "mm"])
def test_scales_and_flip_have_a_number_of_their_own(source: str, evaluate: Evaluate, bench: Bench) -> None:
    result = evaluate("voc", source, "--scales", "0.5", "1.5", "--flip", "--batch-size", "2")
    truth = bench.miou[f"toy.voc_{source} several"]
    assert (result.code, result.err) == (0, "")
    assert f"reported {truth:.2f}, measured {truth:.2f}" in result.out
    assert "whole, scales 0.5 1.5, flip" in result.out
    assert abs(truth - bench.miou[f"toy.voc_{source}"]) > 0.1  # so it is not the other number
    assert SEVERAL.items() <= result.facts["reported"]["test"].items()
    assert result.facts["protocol"]["rules"] == {"me": "ssseg", "mm": "mmseg"}[source]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [["--flip"], ["--resize", "48"], ["--mode", "slide", "--crop", "32", "32"], ["--split", "train"]],
    ids=" ".join,
)
def test_another_protocol_has_no_number(options: list[str], evaluate: Evaluate) -> None:
    result = evaluate("voc", "me", *options, add=0.5)
    assert (result.code, result.err, result.facts["reported"], result.facts["verdict"]) == (0, "", None, None)
    assert "no number was reported for this; reported is " in result.out


def test_weights_without_a_record_have_no_number(evaluate: Evaluate, bench: Bench) -> None:
    path = bench.mirror / "voc.pth"
    result = evaluate("voc", "me", "--model", "toy", "--weights", path, "--resize", "64")
    assert (result.code, result.err, result.facts["weights"]) == (0, "", "voc.pth")
    assert result.out.splitlines()[-2] == "no reported number"
    assert result.facts["scores"]["mIoU"] == pytest.approx(bench.miou["toy.voc_me"], rel=1e-9)


@pytest.mark.usefixtures("bench")
def test_other_classes_are_named_and_have_no_number(evaluate: Evaluate, tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "voc_like", classes=21)
    result = evaluate("voc", "me", "--data", data)
    assert result.code == 0
    assert result.facts["reported"] is None
    assert result.err == "zoo-seg: warning: class 0 is 'background' to the weights, 'ground' here\n"


@pytest.mark.slow
def test_without_out_every_protocol_has_a_folder(evaluate: Evaluate, bench: Bench) -> None:
    evaluate("folder", "me")
    for options in ([], ["--scales", "0.5", "1.5", "--flip"]):
        assert main(["evaluate", "--data", str(bench.data / "folder"), "--weights", "toy.drawn_me", *options]) == 0
    found = sorted(path.relative_to("evaluation").as_posix() for path in Path("evaluation").rglob("*.json"))
    assert found == [f"toy.drawn_me_val_whole{several}/evaluation.json" for several in ("", "_0.5_1.5_flip")]


# --- mistakes -------------------------------------------------------------------------------------


def _break_picture(data: Path) -> str:
    path = sorted((data / "images" / "val").iterdir())[1]
    path.write_bytes(path.read_bytes()[:200])
    return path.name


def _break_mask(data: Path) -> str:
    path = sorted((data / "masks" / "val").iterdir())[1]
    path.write_bytes(b"nothing")
    return path.name


def _shrink_mask(data: Path) -> str:
    path = sorted((data / "masks" / "val").iterdir())[1]
    with Image.open(path) as mask:
        mask.resize((32, 48), Image.Resampling.NEAREST).save(path)
    return f"{path.name} is 32x48 pixels and its image 64x48"


def _ignore_everything(data: Path) -> str:
    for mask in (data / "masks" / "val").iterdir():
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(mask)
    return "no pixel of the 2 images of 'val' has a label"


@pytest.mark.parametrize("spoil", [_break_picture, _break_mask, _shrink_mask, _ignore_everything])
def test_no_picture_is_passed_over(spoil: Callable[[Path], str], evaluate: Evaluate, tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data")
    words = spoil(data)
    result = evaluate("folder", "me", "--data", data)
    assert (result.code, result.out, result.facts) == (1, "", {})
    assert words in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--weights", "toy.ade20k_me"], 1, "the network has 150 classes, the data set"),
        (["--split", "test"], 2, "has no split 'test' with"),
        (["--data", "nowhere"], 2, "nowhere: there is no such folder"),
        (["--dataset", "cityscapes"], 1, "leftImg8bit"),
        (["--tolerance", "-1"], 2, "--tolerance is -1.0"),
        (["--tolerance", "nan"], 2, "--tolerance is nan"),
        (["--scales", "100"], 2, "factors of the test size"),
        (["--crop", "32", "32"], 2, "crop and stride belong to mode='slide'"),
        (["--device", "abacus"], 2, "device 'abacus' cannot be used"),
        (["--out", "mine.json"], 2, "mine.json is a file; expected a folder"),
        (["--limit", "0"], 2, "'0' is not a whole number of at least 1"),
        (["--dataset", "coco"], 2, "layout is 'coco', expected auto, folder, voc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_message(options: list[str], code: int, words: str, evaluate: Evaluate) -> None:
    result = evaluate("voc", "me", *options)
    assert (result.code, result.out) == (code, "")
    assert words in result.err


@pytest.mark.parametrize("package", ["torchmetrics", "matplotlib"])
def test_a_missing_extra_is_named(package: str, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith((package, "zoo_seg.evaluation", "zoo_seg.cli.eval"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    result = evaluate("voc", "me")
    assert (result.code, result.out) == (1, "")
    assert f"needs {package}" in result.err
    assert "pip install 'zoo_seg[evaluate]'" in result.err


# --- from Python ----------------------------------------------------------------------------------


def small_model() -> SegmentationModel:
    torch.manual_seed(0)
    return build_model("semanticfpn", "mobilenetv3_small_050", 3, channels=8)


def _share(rank: int, data: Path, folder: Path) -> None:
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    try:
        found = measure(small_model(), open_data(data), rank=rank, world_size=2)
    finally:
        dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps([found.scores, found.per_class["IoU"].tolist(), found.images]))


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data = bench.data / "folder"  # three images: one process has more than the other
    other = mp.get_context("spawn").Process(target=_share, args=(1, data, tmp_path))
    other.start()
    _share(0, data, tmp_path)
    other.join(60)
    alone = measure(small_model(), open_data(data))
    for rank in range(2):
        scores, ious, pictures = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (scores, ious, pictures) == (alone.scores, alone.per_class["IoU"].tolist(), PICTURES)


def test_measuring_leaves_the_network_as_it_was(bench: Bench) -> None:
    model = small_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (measure(model, open_data(bench.data / "folder")) for _ in range(2))
    assert first.scores == second.scores
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_measure_refuses_what_cannot_be_measured(bench: Bench) -> None:
    data = open_data(bench.data / "folder")
    with pytest.raises(OptionError, match=r"torch\.distributed, which is not initialised"):
        measure(small_model(), data, rank=1, world_size=2)
    with pytest.raises(OptionError, match="limit is 0"):
        measure(small_model(), data, limit=0)
    with pytest.raises(DataError, match=r"has 3 classes, the data set .* 21"):
        measure(small_model(), open_data(bench.data / "voc"))
