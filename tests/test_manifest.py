"""The manifest says what was published, and a mistake in a user's own is reported with its place."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from conftest import Zoo, toy_manifest
from helpers.reference import FIXTURES, key_list, keys

import zoo_seg
from zoo_seg import Weights, create_model, get_weights, list_models, list_weights
from zoo_seg.data.layouts import LAYOUTS
from zoo_seg.errors import HashMismatchError, ManifestError, UnknownNameError
from zoo_seg.manifest import (
    PROTOCOLS,
    File,
    aliases,
    canonical_name,
    get_architecture,
    get_model,
    load_manifest,
    published_manifest,
    read_manifest,
)

PUBLISHED: list[dict[str, Any]] = json.loads((FIXTURES / "published.json").read_text(encoding="utf-8"))
EVERY = list(read_manifest(published_manifest()).weights.values())
RECORDS = [get_weights(facts["model"], f"{facts['dataset']}_{facts['source']}") for facts in PUBLISHED]
"""Those whose published facts are kept beside the tests."""
OWN = [record for record in EVERY if record.source == "zoo"]

each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)


# --- what was published -------------------------------------------------------------------------


def test_every_record_of_the_manifest_is_whole() -> None:
    manifest = read_manifest(published_manifest())
    manifest.check()
    assert list_weights() == EVERY == list(manifest.weights.values())
    assert list_models() == list(manifest.models)
    assert {record.model for record in EVERY} == set(manifest.models)
    assert {key.id: key for key in manifest.keys.values()} == {
        record.id: (record.id, record.model, record.tag, record.dataset, record.source) for record in EVERY
    }
    assert {record.source for record in EVERY} == set(manifest.sources)
    used = {record.dataset for record in EVERY}
    assert used <= set(manifest.datasets) <= used | set(LAYOUTS)


def test_the_protocols_are_those_that_the_code_knows() -> None:
    assert dict(load_manifest().protocols) == PROTOCOLS
    assert all(record.rules == PROTOCOLS[record.protocol] for record in EVERY)


@pytest.mark.parametrize("record", OWN, ids=lambda record: record.id)
def test_our_own_weights_come_with_the_package_and_say_everything(record: Weights) -> None:
    (file,) = record.files
    assert file.packaged
    assert file.packaged.stat().st_size == file.size
    assert file.size <= 6_000_000
    assert hashlib.sha256(file.packaged.read_bytes()).hexdigest() == file.sha256
    assert [(metric.split, metric.status) for metric in record.metrics] == [("val", "reproduced")]
    assert record.licence.data
    assert "research" in record.licence.data
    assert "research" in (record.licence.weights or "")
    assert record.recipe.epochs
    assert record.recipe.iterations
    model = create_model(record.model, record)
    assert sum(parameter.numel() for parameter in model.parameters()) == record.parameters
    assert model.classes == record.classes
    assert not model.training
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
    averaged = [metric.value for metric in record.metrics if metric.test.flip and len(metric.test.scales) > 1]
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


@pytest.mark.parametrize("record", EVERY, ids=lambda record: record.id)
def test_the_digits_of_a_file_name_are_its_claim(record: Weights) -> None:
    for file in record.files:
        claimed = re.search(r"-([0-9a-f]{8})\.pth$", file.url)
        assert file.sha256_prefix_claimed == (claimed[1] if claimed else None)


@pytest.mark.parametrize("record", EVERY, ids=lambda record: record.id)
def test_each_name_of_a_file_is_tried_on_each_host_and_the_published_first(record: Weights) -> None:
    hosts = [host.url for host in load_manifest().sources[record.source].hosts]
    for file in record.files:
        links = [file.url, *file.mirrors]
        if hosts and file.url.startswith(hosts[0]):
            paths = dict.fromkeys(link.removeprefix(host) for link in links for host in hosts if link.startswith(host))
            assert links == [host + path for path in paths for host in hosts]
        if record.source == "ssseg" and file.name.endswith("_train.pth"):  # HEAD's tables have dropped it since
            assert file.url.replace("_train.pth", ".pth") in file.mirrors


def test_the_first_published_files_of_ssseg_have_both_names() -> None:
    for facts, record in zip(PUBLISHED, RECORDS, strict=True):
        if record.source == "ssseg":
            assert facts["url"].endswith("_train.pth")
            assert record.files[0].url == facts["url"]
            assert facts["url"].replace("_train.pth", ".pth") in record.files[0].mirrors


@each_record
def test_parameters_and_classes_are_the_checkpoint_s(record: Weights) -> None:
    shapes = dict(keys(*key_list(record)))
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    sizes = [_product(shape) for name, shape in shapes.items() if not name.endswith(buffers)]
    assert record.parameters == sum(sizes)
    classes = len(load_manifest().datasets[record.dataset].classes)
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
    assert resize
    assert (resize.short, resize.long) == (1024 if record.dataset == "cityscapes" else 512, 2048)
    assert record.protocol == record.source
    assert record.licence.code == "Apache-2.0"
    assert record.licence.weights == {"ssseg": None, "mmseg": "Apache-2.0"}[record.source]
    terms = {"voc": "Flickr", "ade20k": "non-commercial", "cityscapes": "non-commercial"}[record.dataset]
    assert record.licence.data
    assert terms in record.licence.data
    assert "SegmentationBLWX" in record.provenance.project or "open-mmlab" in record.provenance.project


@pytest.mark.parametrize("model", list_models())
def test_bare_data_set_is_the_default_tag_and_every_alias_works(model: str) -> None:
    records = [record for record in EVERY if record.model == model]
    first = {record.dataset: record for record in reversed(records)}
    for name in (model, *aliases(model)):
        assert callable(getattr(zoo_seg, name))
        assert canonical_name(name) == model
        assert list_weights(model=name) == records
        for dataset, record in first.items():
            assert get_weights(name, dataset) == get_weights(f"{name}.{dataset}") == record


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("pspnet_resnet50_os8", {"pspnet_r50_os8"}),
        ("semanticfpn_resnet101", {"semanticfpn_r101", "semantic_fpn_resnet101", "semantic_fpn_r101"}),
        ("fcn_resnet18_os8", set()),
        ("upernet_resnet50c", set()),
    ],
)
def test_aliases_follow_a_rule(name: str, others: set[str]) -> None:
    assert set(aliases(name)) == others


def test_a_network_s_own_part_of_a_record() -> None:
    """The projects build Semantic FPN's neck differently: the model says what is common, the record what is its own."""
    by_source = {record.source: record.architecture for record in list_weights("semanticfpn_resnet50")}
    assert by_source["mmseg"] == replace(by_source["ssseg"], options={"neck": "conv"})
    assert by_source["ssseg"] == get_model("semantic_fpn_r50").architecture


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
            lambda r: "_os8." in r.id and (r.dataset, r.source) == ("ade20k", "ssseg"),
        ),
        ({"min_miou": 79.04}, lambda r: (r.miou or 0) >= 79.04),
        ({"max_parameters": 30_000_000}, lambda r: r.parameters <= 30_000_000),
        ({"max_multiply_adds": 10**10}, lambda r: r.multiply_adds is not None and r.multiply_adds <= 10**10),
        ({"max_seconds": 0.5}, lambda r: r.seconds is not None and r.seconds <= 0.5),
        ({"source": "zoo", "dataset": "voc"}, lambda r: False),
    ],
)
def test_filters(filters: dict[str, Any], expected: Callable[[Weights], bool]) -> None:
    assert list_weights(**filters) == [record for record in EVERY if expected(record)]


@pytest.mark.parametrize("sort", ["dataset", "model", "source", "miou", "parameters", "multiply_adds"])
def test_sorting(sort: Any) -> None:
    records = list_weights(sort=sort)
    values = [getattr(record, sort) or 0.0 for record in records]  # an mIoU that nobody stated comes last
    assert values == sorted(values, reverse=sort == "miou")
    assert sorted(record.id for record in records) == sorted(record.id for record in EVERY)


@pytest.mark.parametrize("dataset", sorted({record.dataset for record in EVERY}))
def test_the_best_are_those_that_no_other_beats(dataset: str) -> None:
    every, best = list_weights(dataset=dataset), list_weights(dataset=dataset, best=True)
    cost = "seconds" if all(record.seconds for record in every) else "multiply_adds"

    def beats(one: Weights, other: Weights) -> bool:
        """At no more cost a better number, or the same one at less."""
        first, second = (getattr(one, cost), one.miou or 0), (getattr(other, cost), other.miou or 0)
        return first[0] <= second[0] and first[1] >= second[1] and first != second

    rated = [record for record in every if record.miou and getattr(record, cost)]
    for record in rated:
        beaten = any(beats(other, record) for other in rated)
        twin = any((getattr(each, cost), each.miou) == (getattr(record, cost), record.miou) for each in best)
        assert (record in best or twin) != beaten, record.id


@pytest.mark.parametrize("model", ["pidnet_small", "segformer_mit_b0", "semanticfpn_mobilenetv4_small"])
def test_multiply_adds_are_counted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(published_manifest().parent / "benchmarks")
    zoo = importlib.import_module("zoo")
    assert load_manifest().models[model].multiply_adds == zoo.multiply_adds(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_weights("pspnet_resnet50", "voc"), "did you mean .*'pspnet_resnet50_os8'"),
        (lambda: get_weights("pspnet_resnet50_os8", "coco"), "its tags are ade20k, cityscapes, .*voc, .*voc_ssseg"),
        (lambda: get_weights("semanticfpn_resnet50", "voc_mmseg"), "its tags are"),
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
    assert record.classes == ("ground", "wall", "sky")
    assert record.licence.code == "MIT"
    assert list_models("toy*") == ["toy_r50"]
    assert list_weights(model="toy_r50", dataset="toys", source="me", min_miou=12.5) == [record]

    model = zoo_seg.create_model("toy_r50", "toys")
    assert model.weights == record
    assert model.num_classes == 3
    assert sum(parameter.numel() for parameter in model.parameters()) == record.parameters


def test_own_weights_may_refer_to_published_names(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = toy_manifest()
    weights = raw["weights"]["toy_r50.toys_me"] | {
        "dataset": "voc",
        "recipe": "ssseg_voc_60_epochs_aux",
        "preprocess": "imagenet_512",
        "test": "whole",
    }
    path = tmp_path / "mehr Gewichte.json"
    path.write_text(json.dumps({"schema_version": 2, "weights": {"fcn_resnet50_os8.voc_me": weights}}))
    monkeypatch.setenv("ZOO_SEG_MANIFEST", f"{zoo.manifest}{os.pathsep}{path}")
    own, published = get_weights("fcn_r50_os8", "voc_me"), get_weights("fcn_r50_os8", "voc")
    assert own.num_classes == 21
    assert published.source == "ssseg"
    assert (own.recipe, own.preprocess, own.test) == (published.recipe, published.preprocess, published.test)


def test_a_changed_manifest_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"schema_version": 2}')
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(path))
    assert len(load_manifest().weights) == len(EVERY)
    path.write_text(json.dumps(toy_manifest()))
    assert len(load_manifest().weights) == len(EVERY) + 2


Place = tuple[str | int, ...]
TOY: Place = ("weights", "toy_r50.toys_me")
FILE: Place = (*TOY, "files", 0)
HOST: Place = ("sources", "me", "hosts", 0)


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
    (put(*TOY, "metrics", 0, "test", "flip", value=0), (*TOY, "metrics", 0, "test", "flip"), "true or false"),
    (put(*TOY, "metrics", 0, "test", value="hole"), (*TOY, "metrics", 0, "test"), "did you mean 'whole'"),
    (put(*TOY, "metrics", 0, "test", "crop", value=[9, 9]), (*TOY, "metrics", 0, "test"), "with mode 'slide' only"),
    (put(*TOY, "test", value={"mode": "slide", "crop": [0, 9]}), (*TOY, "test"), "two sides of 1 to"),
    (put(*TOY, "recipe", value="ssseg_voc"), (*TOY, "recipe"), "did you mean 'ssseg_voc_60_epochs"),
    (put(*TOY, "architecture", value={"family": "pspnet"}), (*TOY, "architecture", "family"), "unknown key"),
    (put(*TOY, "architecture", value={"options": {"a": ["\a"]}}), (*TOY, "architecture", "options", "a", 0), "control"),
    (put(*TOY, "architecture", value={"options": [1]}), (*TOY, "architecture", "options"), "expected an object"),
    (put(*TOY, "licence_pretraining", value=3), (*TOY, "licence_pretraining"), "expected a string"),
    (put(*TOY, "notes", value="careful"), (*TOY, "notes"), "expected a list"),
    (put(*TOY, "provenance", value="me"), (*TOY, "provenance"), "expected an object"),
    (put(*TOY, "files", value=[]), TOY, "expected at least one"),
    (put(*TOY, "id", value="mine"), (*TOY, "id"), "unknown key"),
    (put(*TOY, "model", value="toy_r50"), (*TOY, "model"), "unknown key"),
    (rename(*TOY, to="toy_r51.toys_me"), ("weights", "toy_r51.toys_me"), "did you mean 'toy_r50'"),
    (
        rename(*TOY, to="toy_r50.toys_me2"),
        ("weights", "toy_r50.toys_me2"),
        "the id must be '<model>.<dataset>_<source>",
    ),
    (put(*TOY, "dataset", value="toy"), (*TOY, "dataset"), "did you mean 'toys'"),
    (put(*TOY, "source", value="you"), (*TOY, "source"), "known are ssseg, mmseg, transformers, zoo, torchvision, me"),
    (
        put(*TOY, "dataset", value="games"),
        TOY,
        "the id must be '<model>.<dataset>_<source>[_<variant>]', here 'toy_r50.gam",
    ),
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
    (put(*FILE, "path", value="toys.pth"), FILE, "found both 'path' and 'url'"),
    (put(*TOY, "files", value=[{"path": "toys.pth"}]), (*FILE, "path"), "Me has no hosts"),
    (put("sources", "me", "hosts", value=[{"url": "https://a.invalid", "status": ""}]), HOST, "that ends in '/'"),
    (put("sources", "me", "hosts", value=[{"url": "http://a.invalid/", "status": ""}]), HOST, "expected an https://"),
    (put(*FILE, "size", value=0), FILE, "positive number of bytes"),
    (drop("datasets", "toys", "palette", 2), ("datasets", "toys"), "3 classes but 2 palette colours"),
    (
        put("datasets", "toys", "palette", 0, value=[0, 0]),
        ("datasets", "toys", "palette", 0),
        "found 2 items, expected 3",
    ),
    (put("datasets", "toys", "palette", 0, 2, value=256), ("datasets", "toys"), "outside 0..255"),
    (put("datasets", "toys", "label_ids", value=[1, 2]), ("datasets", "toys"), "3 classes but 2 label_ids"),
    (put("datasets", "toys", "label_ids", value=[1, 2, 2]), ("datasets", "toys"), "a number stands there twice"),
    (put("datasets", "toys", "ignored_ids", value=[0]), ("datasets", "toys"), "ignored_ids without label_ids"),
    (put("sources", "me", "protocol", value="mine"), ("sources", "me", "protocol"), "known are ssseg, mmseg"),
    (rename("models", "toy_r50", to="Toy R50"), ("models", "Toy R50"), "lower-case letters, digits and _"),
    (put("models", "fcn_resnet50_os8", value={}), ("models", "fcn_resnet50_os8"), "taken by an earlier manifest"),
    (put("weights", "fcn_resnet50_os8.voc_ssseg", value={}), ("weights", "fcn_resnet50_os8.voc_ssseg"), "taken by an"),
    (put("weights", value=[]), ("weights",), "expected an object"),
    (put("schema_version", value=3), ("schema_version",), "found 3, this library reads 1 to 2"),
    (drop("schema_version"), ("schema_version",), "found null, this library reads 1 to 2"),
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
        ('{\n "schema_version": 2,\n}', ":(2|3):.* not valid JSON"),
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
    weights = {"schema_version": 2, "weights": toy_manifest()["weights"]}
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
        ("metrics", 0, "test"),
        ("recipe",),
        ("preprocess",),
        ("preprocess", "resize"),
        ("provenance",),
    ]


@pytest.mark.parametrize(
    "place",
    [
        (),
        ("sources", "me"),
        ("datasets", "toys"),
        ("models", "toy_r50"),
        ("models", "toy_r50", "architecture"),
        *LEVELS,
    ],
    ids=lambda place: dotted(place) or "top",
)
def test_unknown_keys_are_refused_at_every_level(place: Place, tmp_path: Path) -> None:
    raw = toy_manifest()
    put(*place, "surprise", value=1)(raw)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ManifestError, match=re.escape(f"{dotted((*place, 'surprise'))}: unknown key")):
        read_manifest(path, read_manifest(published_manifest())).check()


def test_file_names_of_mirrors() -> None:
    file = File("https://a.invalid/x.pth", mirrors=("hf://o/r@main/x.pth", "https://b.invalid/y.pth"))
    assert (file.name, file.names) == ("x.pth", ("x.pth", "y.pth"))


def test_a_path_stands_for_a_link_on_each_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = toy_manifest()
    hosts = [f"https://{name}.invalid/files/" for name in ("one", "two")]
    raw["sources"]["me"]["hosts"] = [{"url": url, "status": "mine"} for url in hosts]
    file = {"path": "v1/toys.pth", "other_paths": ["v1/old.pth"], "mirrors": ["hf://o/r@main/x.pth"], "size": 5}
    raw["weights"]["toy_r50.toys_me"]["files"] = [file]
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(tmp_path / "mine.json"))
    (found,) = get_weights("toy_r50", "toys").files
    assert [found.url, *found.mirrors] == [
        "https://one.invalid/files/v1/toys.pth",
        "https://two.invalid/files/v1/toys.pth",
        "https://one.invalid/files/v1/old.pth",
        "https://two.invalid/files/v1/old.pth",
        "hf://o/r@main/x.pth",
    ]
    assert found.size == 5
    assert found.names == ("toys.pth", "old.pth", "x.pth")


def test_variants_of_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = toy_manifest()
    first = raw["weights"].pop("toy_r50.toys_me")
    own = {"test": {"mode": "slide", "crop": [32, 32], "stride": [16, 16]}, "notes": ["small"]}
    own |= {"architecture": {"align_corners": True, "options": {"channels": 16}}, "licence_pretraining": "CC-BY-NC-4.0"}
    raw["weights"] |= {"toy_r50.toys_me_64_1k": first, "toy_r50.toys_me": {**first, **own}}
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(tmp_path / "mine.json"))
    assert get_weights("toy_r50", "toys").tag == get_weights("toy_r50.toys_me_64_1k").tag == "toys_me_64_1k"
    record = get_weights("toy_r50", "toys_me")
    assert record.tag == "toys_me"
    assert record.notes == ("small",)
    assert record.licence.pretraining == "CC-BY-NC-4.0"
    assert (record.test.mode, record.test.crop, record.test.stride) == ("slide", (32, 32), (16, 16))
    assert record.architecture == replace(
        get_model("toy_r50").architecture, align_corners=True, options={"channels": 16}
    )


def schema_1() -> dict[str, Any]:
    """The toy manifest as it was written for version 1."""
    raw = toy_manifest()
    raw["schema_version"] = 1
    raw["models"]["toy_r50"] = {**raw["models"]["toy_r50"]["architecture"], "channels": 8, "paper": "https://a.invalid"}
    for id_, record in raw["weights"].items():
        record["model"] = id_.partition(".")[0]
        for metric in record["metrics"]:
            metric["protocol"] = metric.pop("test")
    return raw


def test_a_manifest_of_version_1_is_still_read(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [record for record in list_weights() if record.source == "me"]
    (tmp_path / "mine.json").write_text(json.dumps(schema_1()))
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(tmp_path / "mine.json"))
    architecture = replace(get_architecture("toy_r50")[1], options={"channels": 8})
    assert [record for record in list_weights() if record.source == "me"] == [
        replace(record, architecture=architecture) for record in expected
    ]
    assert get_model("toy_r50").paper == "https://a.invalid"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(*TOY, "model", value="toy_r51"), 'found "toy_r51", expected the model of the id'),
        (put("models", "toy_r50", "surprise", value=1), "models.toy_r50.architecture.surprise: unknown key"),
        (put(*TOY, "metrics", 0, "protocol", "flip", value=0), "expected true or false"),
        (put(*TOY, "metrics", value=[3]), "metrics[0]: found 3, expected an object"),
        (put("models", "toy_r50", value=[]), "models.toy_r50: found [], expected an object"),
        (put(*TOY, value=None), "found null, expected an object"),
    ],
)
def test_mistakes_in_version_1(edit: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    raw = schema_1()
    edit(raw)
    (tmp_path / "mine.json").write_text(json.dumps(raw, indent=1))
    with pytest.raises(ManifestError, match=re.escape(message)):
        read_manifest(tmp_path / "mine.json", read_manifest(published_manifest())).check()


def many_records() -> dict[str, Any]:
    """A manifest of the size of all that the two projects published: 1,100 records of 100 models."""
    raw: dict[str, Any] = json.loads(published_manifest().read_text(encoding="utf-8"))
    models, weights = raw["models"], raw["weights"]
    raw["models"] = {f"{name}_{i}": model for name, model in models.items() for i in range(9)}
    raw["weights"] = {}
    while len(raw["weights"]) < 1100:
        i = len(raw["weights"]) // len(weights)
        for id_, record in weights.items():
            model, tag = id_.split(".")
            raw["weights"][f"{model}_{i % 9}.{tag}_{i}k"] = record
    return raw


def test_a_record_is_decoded_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = many_records()
    bad, good = list(raw["weights"])[:2]
    raw["weights"][bad] = {**raw["weights"][bad], "parameters": "many"}
    (tmp_path / "big.json").write_text(json.dumps(raw))
    manifest = read_manifest(tmp_path / "big.json")
    assert manifest.weights[good].parameters > 0
    assert len(manifest.weights) >= 1100
    with pytest.raises(ManifestError, match=f"{re.escape(bad)}.*parameters"):
        manifest.weights[bad]
    with pytest.raises(ManifestError, match=f"{re.escape(bad)}.*parameters"):
        manifest.check()


def test_1100_records_cost_little(tmp_path: Path) -> None:
    """Counted in calls of Python functions (108 a record now): a time depends on the load."""
    (tmp_path / "big.json").write_text(json.dumps(many_records()), encoding="utf-8")
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        records = list(read_manifest(tmp_path / "big.json").weights.values())
    finally:
        sys.setprofile(None)
    assert len(records) >= 1100
    assert calls < 150 * len(records)
