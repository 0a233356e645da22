"""The manifest says what was published, and a mistake in a user's own is reported with its place."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from conftest import Zoo, toy_manifest
from reference import FIXTURES, key_list, keys

import zoo_seg
from zoo_seg import Weights, create_model, get_weights, list_models, list_weights
from zoo_seg.errors import HashMismatchError, ManifestError, UnknownNameError
from zoo_seg.manifest import File, load_manifest, published_manifest, read_manifest

PUBLISHED: list[dict[str, Any]] = json.loads((FIXTURES / "published.json").read_text(encoding="utf-8"))
EVERY = list(read_manifest(published_manifest()).weights.values())
RECORDS = [record for record in EVERY if record.source != "zoo"]
OWN = [record for record in EVERY if record.source == "zoo"]
MODELS = [
    *(
        f"{family}_resnet{depth}_os{stride}"
        for family in ("fcn", "pspnet")
        for depth in (50, 101)
        for stride in (8, 16)
    ),
    *(f"semanticfpn_resnet{depth}" for depth in (50, 101)),
]

OWN_MODELS = ["semanticfpn_mobilenetv4_small"]

each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)


def aliases(model: str) -> list[str]:
    """Every way to write a model's name."""
    names = [model, model.replace("resnet", "r")]
    return names + [name.replace("semanticfpn", "semantic_fpn") for name in names if name.startswith("semanticfpn")]


# --- what was published -------------------------------------------------------------------------


def test_there_are_ten_published_models_34_weights_and_our_own() -> None:
    assert list_models() == MODELS + OWN_MODELS
    assert len(RECORDS) == 34 == len({record.id for record in RECORDS})
    assert list_weights() == EVERY == RECORDS + OWN


@pytest.mark.parametrize("record", OWN, ids=lambda record: record.id)
def test_our_own_weights_come_with_the_package_and_say_everything(record: Weights) -> None:
    (file,) = record.files
    assert file.packaged and file.packaged.stat().st_size == file.size and file.size <= 6_000_000
    assert hashlib.sha256(file.packaged.read_bytes()).hexdigest() == file.sha256
    assert [(metric.split, metric.status) for metric in record.metrics] == [("val", "reproduced")]
    assert record.licence.data and "research" in record.licence.data and "research" in (record.licence.weights or "")
    assert record.recipe.epochs and record.recipe.iterations
    model = create_model(record.model, record)
    assert sum(parameter.numel() for parameter in model.parameters()) == record.parameters
    assert model.classes == record.classes and not model.training
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert next(iter(getattr(zoo_seg, record.model)(pretrained=record.dataset).parameters())).equal(
        next(iter(model.parameters()))
    )


def test_a_damaged_packaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = OWN
    damaged = tmp_path / record.files[0].name
    damaged.write_bytes(b"damaged")
    monkeypatch.setattr(File, "packaged", damaged)
    with pytest.raises(HashMismatchError, match="install zoo_seg again"):
        create_model(record.model, record)


@pytest.mark.parametrize(
    "facts", PUBLISHED, ids=lambda facts: "-".join([facts["model"], facts["dataset"], facts["source"]])
)
def test_facts_are_the_published_ones(facts: dict[str, Any]) -> None:
    record = get_weights(facts["model"], f"{facts['dataset']}_{facts['source']}")
    recipe, (file,) = record.recipe, record.files
    assert record.miou == facts["miou"]
    averaged = [metric.value for metric in record.metrics if metric.protocol.flip and len(metric.protocol.scales) > 1]
    assert averaged == ([facts["miou_ms_flip"]] if facts["miou_ms_flip"] else [])
    assert {(metric.name, metric.split, metric.status) for metric in record.metrics} == {
        ("mIoU", facts["eval_set"], "reported")
    }
    assert file.url == facts["url"]
    assert list(recipe.crop) == facts["crop"]
    assert (recipe.batch_size, recipe.epochs, recipe.iterations, recipe.lr, recipe.train_split) == tuple(
        facts[name] for name in ("batch_size", "epochs", "iterations", "lr", "train_set")
    )
    assert record.provenance.log_url == facts["log_url"]


@each_record
def test_names_follow_from_the_parts(record: Weights) -> None:
    assert record.tag == f"{record.dataset}_{record.source}"
    assert record.id == f"{record.model}.{record.tag}"
    assert (
        record
        == get_weights(record.id)
        == get_weights(record.model, record.tag)
        == get_weights(record.model, record.id)
    )


@each_record
def test_no_size_or_hash_is_invented(record: Weights) -> None:
    (file,) = record.files
    assert (file.size, file.sha256) == (None, None)
    claimed = re.search(r"-([0-9a-f]{8})\.pth$", file.url)
    assert file.sha256_prefix_claimed == (claimed[1] if claimed else None)
    assert bool(claimed) == (record.source == "mmseg")


@each_record
def test_later_names_of_a_file_are_mirrors(record: Weights) -> None:
    (file,) = record.files
    expected = []
    if record.source == "ssseg":
        assert file.url.endswith("_train.pth")
        later = file.url.replace("_train.pth", ".pth")
        os32 = re.sub(r"(semanticfpn_resnet\d+)_(?=[^/]*$)", r"\1os32_", later)
        expected = list({os32: None, later: None})
    assert list(file.mirrors) == expected
    assert file.names == tuple(url.rsplit("/", 1)[-1] for url in (file.url, *expected))


@each_record
def test_parameters_and_classes_are_the_checkpoint_s(record: Weights) -> None:
    shapes = dict(keys(*key_list(record)))
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    sizes = [_product(shape) for name, shape in shapes.items() if not name.endswith(buffers)]
    assert record.parameters == sum(sizes)
    classes = {"voc": 21, "ade20k": 150, "cityscapes": 19}[record.dataset]
    assert classes == record.num_classes == len(set(record.classes)) == len(record.palette)
    assert (classes,) in shapes.values()


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result


@pytest.mark.parametrize(
    ("dataset", "index", "name", "colour"),
    [
        ("voc", 0, "background", (0, 0, 0)),
        ("voc", 15, "person", (192, 128, 128)),
        ("voc", 20, "tv", (0, 64, 128)),
        ("ade20k", 0, "wall", (120, 120, 120)),
        ("ade20k", 2, "sky", (6, 230, 230)),
        ("ade20k", 149, "flag", (92, 0, 255)),
        ("cityscapes", 0, "road", (128, 64, 128)),
        ("cityscapes", 11, "person", (220, 20, 60)),
        ("cityscapes", 18, "bicycle", (119, 11, 32)),
    ],
)
def test_classes_are_in_the_data_set_s_order(dataset: str, index: int, name: str, colour: tuple[int, ...]) -> None:
    for record in list_weights(dataset=dataset):
        assert name in record.classes[index]
        assert record.palette[index] == colour


@each_record
def test_preprocessing_protocol_and_licences(record: Weights) -> None:
    assert record.preprocess.mean == (123.675, 116.28, 103.53)
    assert record.preprocess.std == (58.395, 57.12, 57.375)
    resize = record.preprocess.resize
    assert resize and (resize.short, resize.long) == (1024 if record.dataset == "cityscapes" else 512, 2048)
    assert record.protocol == record.source
    assert record.licence.code == "Apache-2.0"
    assert record.licence.weights == {"ssseg": None, "mmseg": "Apache-2.0"}[record.source]
    terms = {"voc": "Flickr", "ade20k": "non-commercial", "cityscapes": "non-commercial"}[record.dataset]
    assert record.licence.data and terms in record.licence.data
    assert "SegmentationBLWX" in record.provenance.project or "open-mmlab" in record.provenance.project


@pytest.mark.parametrize("model", MODELS)
def test_bare_data_set_is_the_default_tag_and_every_alias_works(model: str) -> None:
    for name in aliases(model):
        assert callable(getattr(zoo_seg, name))
        for dataset in ("voc", "ade20k", "cityscapes"):
            assert get_weights(name, dataset).id == get_weights(f"{name}.{dataset}").id == f"{model}.{dataset}_ssseg"
        assert list_weights(model=name) == [record for record in RECORDS if record.model == model]


# --- finding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"dataset": "voc"}, lambda r: r.dataset == "voc"),
        ({"source": "mmseg"}, lambda r: r.source == "mmseg"),
        ({"model": "pspnet*"}, lambda r: r.model.startswith("pspnet")),
        ({"model": "fcn_r50*"}, lambda r: r.model.startswith("fcn_resnet50")),
        ({"model": "semantic_fpn*"}, lambda r: r.model.startswith("semanticfpn")),
        (
            {"model": "*_os8", "dataset": "ade20k", "source": "ssseg"},
            lambda r: "_os8." in r.id and r.dataset == "ade20k",
        ),
        ({"min_miou": 79.04}, lambda r: r.miou >= 79.04),
        ({"max_parameters": 30_000_000}, lambda r: r.parameters <= 30_000_000),
        ({"source": "mmseg", "dataset": "voc"}, lambda r: False),
    ],
)
def test_filters(filters: dict[str, Any], expected: Callable[[Weights], bool]) -> None:
    assert list_weights(**filters) == [record for record in EVERY if expected(record)]


@pytest.mark.parametrize("sort", ["dataset", "model", "source", "miou", "parameters"])
def test_sorting(sort: Any) -> None:
    records = list_weights(sort=sort)
    values = [getattr(record, sort) for record in records]
    assert values == sorted(values, reverse=sort == "miou")
    assert sorted(record.id for record in records) == sorted(record.id for record in EVERY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_weights("pspnet_resnet50", "voc"), "did you mean .*'pspnet_resnet50_os8'"),
        (lambda: get_weights("pspnet_resnet50_os8", "coco"), "its tags are ade20k, cityscapes, voc, voc_ssseg"),
        (lambda: get_weights("pspnet_resnet50_os8", "voc_mmseg"), "its tags are"),
        (lambda: get_weights("pspnet_resnet50_os8"), "such as 'pspnet_resnet50_os8.ade20k'"),
        (lambda: get_weights("fcn_resnet50_os8", "pspnet_resnet50_os8.voc"), "no weights 'pspnet_resnet50_os8.voc'"),
        (lambda: list_weights(model="unet*"), "there is no model 'unet"),
        (lambda: list_weights(dataset="cityscape"), "did you mean 'cityscapes'"),
        (lambda: list_weights(source="mmsegmentation"), "did you mean 'mmseg'"),
        (lambda: list_weights(sort="mIoU"), "did you mean 'miou'"),  # type: ignore[arg-type]
    ],
)
def test_unknown_names_are_answered_with_near_ones(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        call()


# --- a user's own manifest ----------------------------------------------------------------------


def test_own_weights_stand_beside_the_published(zoo: Zoo) -> None:
    records = list_weights()
    assert records[: len(EVERY)] == EVERY
    assert [record.id for record in records[len(EVERY) :]] == ["toy_r50.toys_me", "toy_r50.games_me"]
    record = get_weights("toy_r50", "toys")
    assert record.classes == ("ground", "wall", "sky") and record.licence.code == "MIT"
    assert list_models("toy*") == ["toy_r50"]
    assert list_weights(model="toy_r50", dataset="toys", source="me", min_miou=12.5) == [record]

    model = zoo_seg.create_model("toy_r50", "toys")
    assert model.weights == record and model.num_classes == 3
    assert sum(parameter.numel() for parameter in model.parameters()) == record.parameters


def test_own_weights_may_refer_to_published_names(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = toy_manifest()
    weights = raw["weights"]["toy_r50.toys_me"] | {"dataset": "voc", "model": "fcn_resnet50_os8"}
    path = tmp_path / "mehr Gewichte.json"
    path.write_text(json.dumps({"schema_version": 1, "weights": {"fcn_resnet50_os8.voc_me": weights}}))
    monkeypatch.setenv("ZOO_SEG_MANIFEST", f"{zoo.manifest}{os.pathsep}{path}")
    assert get_weights("fcn_r50_os8", "voc_me").num_classes == 21
    assert get_weights("fcn_r50_os8", "voc").source == "ssseg"


def test_a_changed_manifest_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"schema_version": 1}')
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(path))
    assert len(load_manifest().weights) == len(EVERY)
    path.write_text(json.dumps(toy_manifest()))
    assert len(load_manifest().weights) == len(EVERY) + 2


Place = tuple[str | int, ...]
TOY: Place = ("weights", "toy_r50.toys_me")
FILE: Place = (*TOY, "files", 0)


def dotted(place: Place) -> str:
    """A place as a message writes it."""
    text = ""
    for step in place:
        plain = isinstance(step, str) and re.fullmatch(r"\w+", step)
        text += f".{step}" if plain and text else step if plain else f"[{json.dumps(step)}]"  # type: ignore[operator]
    return text


def put(*steps: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit of the toy manifest: this value at this place."""

    def edit(raw: Any) -> None:
        for step in steps[:-1]:
            raw = raw[step]
        raw[steps[-1]] = value

    return edit


def drop(*steps: str | int) -> Callable[[dict[str, Any]], None]:
    def edit(raw: Any) -> None:
        for step in steps[:-1]:
            raw = raw[step]
        del raw[steps[-1]]

    return edit


def rename(*steps: str | int, to: str) -> Callable[[dict[str, Any]], None]:
    def edit(raw: Any) -> None:
        for step in steps[:-1]:
            raw = raw[step]
        raw[to] = raw.pop(steps[-1])

    return edit


MISTAKES: list[tuple[Callable[[dict[str, Any]], None], Place, str]] = [
    # (the edit, the place the message must name, what else it must say)
    (put(*TOY, "parameters", value="many"), (*TOY, "parameters"), 'found "many", expected a whole number'),
    (put(*TOY, "parameters", value=1.5), (*TOY, "parameters"), "found 1.5, expected a whole number"),
    (put(*TOY, "parameters", value=True), (*TOY, "parameters"), "found true, expected a whole number"),
    (put(*TOY, "recipe", "lr", value="0.01"), (*TOY, "recipe", "lr"), "expected a number"),
    (put(*TOY, "recipe", "crop", value=[64]), (*TOY, "recipe", "crop"), "found 1 items, expected 2"),
    (put(*TOY, "recipe", "crop", value=64), (*TOY, "recipe", "crop"), "found 64, expected a list"),
    (put(*TOY, "preprocess", value=None), (*TOY, "preprocess"), "found null, expected an object"),
    (put(*TOY, "preprocess", "std", value=[1, 0, 1]), (*TOY, "preprocess"), "expected three positive numbers"),
    (put(*TOY, "preprocess", "resize", "short", value=512), (*TOY, "preprocess", "resize"), "0 < short <= long"),
    (put(*TOY, "metrics", 0, "value", value=101), (*TOY, "metrics", 0), "percent between 0 and 100"),
    (put(*TOY, "metrics", 0, "status", value="guessed"), (*TOY, "metrics", 0, "status"), "'reported', 'reproduced'"),
    (put(*TOY, "metrics", 0, "protocol", "flip", value=0), (*TOY, "metrics", 0, "protocol", "flip"), "true or false"),
    (put(*TOY, "provenance", value="me"), (*TOY, "provenance"), "expected an object"),
    (put(*TOY, "files", value=[]), TOY, "expected at least one"),
    (put(*TOY, "id", value="mine"), (*TOY, "id"), "unknown key"),
    (put(*TOY, "model", value="toy_r51"), (*TOY, "model"), "did you mean 'toy_r50'"),
    (put(*TOY, "model", value=["toy_r50"]), (*TOY, "model"), 'no model ["toy_r50"]'),
    (put(*TOY, "dataset", value="toy"), (*TOY, "dataset"), "did you mean 'toys'"),
    (put(*TOY, "source", value="you"), (*TOY, "source"), "known are ssseg, mmseg, zoo, me"),
    (put(*TOY, "dataset", value="games"), TOY, "the id must be '<model>.<dataset>_<source>', here 'toy_r50.games_me'"),
    (put(*TOY, value=[]), TOY, "expected an object"),
    (drop(*TOY, "recipe"), TOY, "the key 'recipe' is missing"),
    (drop(*TOY, "dataset"), TOY, "the key 'dataset' is missing"),
    (drop(*TOY, "provenance"), (*TOY, "provenance"), "the key 'config_url' is missing"),
    (drop(*FILE, "url"), FILE, "the key 'url' is missing"),
    (put(*FILE, "url", value="http://zoo.invalid/toys.pth"), FILE, "expected an https://, hf:// or file:// link"),
    (put(*FILE, "url", value="https://zoo.invalid/.."), FILE, "expected a plain file name"),
    (put(*FILE, "url", value="https://zoo.invalid/"), FILE, "expected a plain file name"),
    (put(*FILE, "mirrors", value=["toys.pth"]), FILE, "found 'toys.pth', expected an https://"),
    (put(*FILE, "sha256", value="a" * 63), FILE, "expected 64 lower-case hex digits"),
    (put(*FILE, "sha256", value="A" * 64), FILE, "expected 64 lower-case hex digits"),
    (put(*FILE, "size", value=0), FILE, "positive number of bytes"),
    (drop("datasets", "toys", "palette", 2), ("datasets", "toys"), "3 classes but 2 palette colours"),
    (
        put("datasets", "toys", "palette", 0, value=[0, 0]),
        ("datasets", "toys", "palette", 0),
        "found 2 items, expected 3",
    ),
    (put("datasets", "toys", "palette", 0, 2, value=256), ("datasets", "toys"), "outside 0..255"),
    (put("sources", "me", "protocol", value="mine"), ("sources", "me", "protocol"), "'ssseg', 'mmseg'"),
    (rename("models", "toy_r50", to="Toy R50"), ("models", "Toy R50"), "lower-case letters, digits and _"),
    (put("models", "fcn_resnet50_os8", value={}), ("models", "fcn_resnet50_os8"), "taken by an earlier manifest"),
    (put("weights", "fcn_resnet50_os8.voc_ssseg", value={}), ("weights", "fcn_resnet50_os8.voc_ssseg"), "taken by an"),
    (put("weights", value=[]), ("weights",), "expected an object"),
    (put("schema_version", value=2), ("schema_version",), "found 2, this library reads 1"),
    (drop("schema_version"), ("schema_version",), "found null, this library reads 1"),
    (rename("datasets", to="data_sets"), ("data_sets",), "did you mean 'datasets'"),
]


@pytest.mark.parametrize(
    ("edit", "place", "message"), MISTAKES, ids=[f"{place[-1]}-{what}" for _, place, what in MISTAKES]
)
def test_a_mistake_is_reported_with_its_place(
    edit: Callable[[dict[str, Any]], None], place: Place, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = toy_manifest()
    edit(raw)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw, indent=1), encoding="utf-8")
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(path))
    with pytest.raises(ManifestError) as caught:
        list_weights()
    where, what = re.fullmatch(rf"{re.escape(str(path))}:(\d+): (.*)", str(caught.value), re.DOTALL).groups()  # type: ignore[union-attr]
    assert message in what
    assert what.startswith(dotted(place) + ":")
    assert int(where) == line_of(raw, place)


def line_of(raw: Any, place: Place) -> int:
    """The line of the value at a place, found by marking it (or what is nearest to it) in the same layout."""
    raw = json.loads(json.dumps(raw))
    parent, value = {"": raw}, raw
    last: str | int = ""
    for step in place:
        if isinstance(value, dict) and step not in value:
            break
        parent, last, value = value, step, value[step]
    parent[last] = "the place" if last != "" else parent[last]  # type: ignore[index]
    text = json.dumps(raw, indent=1)
    return text.count("\n", 0, max(text.find('"the place"'), 0)) + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1:1: not valid JSON"),
        ('{\n "schema_version": 1,\n}', ":(2|3):.* not valid JSON"),
        ('{"schema_version": 1}\n{', ":2:1: not valid JSON"),
        ("[1]", ": the top level: found \\[1\\], expected an object"),
        ("null", "expected an object"),
        ('{\n"schema_version": 1,\n"models": {},\n"models": {}}', ":4: the key 'models' stands twice"),
        ('{"schema_version": 1, "weights": {\n"a": {"b": ["{", {"c": 1}]},\n"a": {}}}', ":3: the key 'a' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        (b'\xff\xfe{"a": 1}', "cannot be read as UTF-8"),
        (None, "cannot be read .*No such file"),
    ],
)
def test_what_is_no_manifest_is_refused(
    text: str | bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(path))
    with pytest.raises(ManifestError, match=f"^{re.escape(str(path))}.*{message}"):
        list_weights()


def test_an_id_in_two_manifests_is_an_error(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"schema_version": 1, "weights": toy_manifest()["weights"]}
    (tmp_path / "again.json").write_text(json.dumps(weights))
    monkeypatch.setenv("ZOO_SEG_MANIFEST", f"{zoo.manifest}{os.pathsep}{tmp_path / 'again.json'}")
    with pytest.raises(ManifestError, match=r"again.json:1: .*toy_r50.toys_me.*taken by an earlier manifest"):
        list_weights()


def _levels(cls: type, raw: Any, place: Place = TOY) -> list[Place]:
    """Every object in the toy weights that is decoded into a dataclass."""
    levels = [place]
    hints = get_type_hints(cls)
    for each in fields(cls):
        for kind in (hints[each.name], *get_args(hints[each.name])):
            if is_dataclass(kind) and each.name in raw:
                value, below = raw[each.name], (*place, each.name)
                if isinstance(value, list):
                    value, below = value[0], (*below, 0)
                levels += _levels(kind, value, below)  # type: ignore[arg-type]
    return levels


LEVELS = _levels(Weights, toy_manifest()["weights"][TOY[1]])


def test_the_toy_manifest_reaches_every_level() -> None:
    assert [place[2:] for place in LEVELS] == [
        (),
        ("files", 0),
        ("metrics", 0),
        ("metrics", 0, "protocol"),
        ("recipe",),
        ("preprocess",),
        ("preprocess", "resize"),
        ("provenance",),
    ]


@pytest.mark.parametrize(
    "place",
    [(), ("sources", "me"), ("datasets", "toys"), ("models", "toy_r50"), *LEVELS],
    ids=lambda place: dotted(place) or "top",
)
def test_unknown_keys_are_refused_at_every_level(place: Place, tmp_path: Path) -> None:
    raw = toy_manifest()
    put(*place, "surprise", value=1)(raw)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ManifestError, match=re.escape(f"{dotted((*place, 'surprise'))}: unknown key")):
        read_manifest(path, read_manifest(published_manifest()))


def test_file_names_of_mirrors() -> None:
    file = File("https://a.invalid/x.pth", mirrors=("hf://o/r@main/x.pth", "https://b.invalid/y.pth"))
    assert (file.name, file.names) == ("x.pth", ("x.pth", "y.pth"))
