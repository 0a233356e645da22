"""transformers' repositories give what transformers computes: the package itself is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers import reference
from helpers.hub_server import Hub, Repo
from helpers.transformers_original import filled, original_shapes
from helpers.transformers_repository import change, class_map, images
from PIL import Image
from safetensors.torch import load_file
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

import zoo_seg
from zoo_seg import Segmentation, SegmentationModel
from zoo_seg.cli import main
from zoo_seg.errors import CheckpointError, DownloadError, ManifestError, OfflineError, ZooSegError
from zoo_seg.manifest import Resize, list_weights, load_manifest

MODELS = [f"segformer_mit_b{size}" for size in range(6)]
NAMES = {index: f"thing {index}" for index in range(12)}
"""So many that numbers are not in the order of their digits."""


@pytest.fixture(scope="module")
def original() -> SegformerForSemanticSegmentation:
    """One whose classes all win somewhere."""
    transformers.utils.logging.disable_progress_bar()
    network = filled(MODELS[0], id2label=NAMES)
    with torch.inference_mode():
        logits = network(torch.from_numpy(reference.image_tensor(128, 128, batch=4))).logits
    with torch.no_grad():
        bias = network.decode_head.classifier.bias
        bias.sub_(logits.mean((0, 2, 3)))
    return network


@pytest.fixture(scope="module")
def written(original: SegformerForSemanticSegmentation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    original.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 128, "width": 128}).save_pretrained(folder)
    return folder


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    """A folder of a test's own, as transformers writes it."""
    return Path(shutil.copytree(written, tmp_path / "saved"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as hub:
        hub.take_the_place_of_the_hub(monkeypatch, no_token=tmp_path / "no token")
        yield hub


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- the same numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODELS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in MODELS[1:])])
@torch.inference_mode()
def test_logits_equal_the_original_s(model: str, tmp_path: Path) -> None:
    network = filled(model, id2label=NAMES)
    network.save_pretrained(tmp_path)
    ours = zoo_seg.from_pretrained(tmp_path)
    assert ours.architecture is not None
    assert f"segformer_{ours.architecture.backbone}" == model
    for sides in ((64, 96), (83, 121)):
        x = torch.from_numpy(reference.image_tensor(*sides, batch=2))
        expected, found = network(x).logits, ours.forward_logits(x)
        assert (found - expected).abs().max() < 2e-5 * expected.std()


def assert_same_maps(
    ours: SegmentationModel, network: SegformerForSemanticSegmentation, folder: Path, several: list[Image.Image]
) -> None:
    processor = SegformerImageProcessor.from_pretrained(folder)
    seen: set[int] = set()
    for image in several:
        expected = class_map(network, processor, image)
        found = ours.predict(image)
        assert isinstance(found, Segmentation)
        assert found.mask.shape == expected.shape
        assert (found.mask == expected).mean() >= 0.999
        seen |= set(np.unique(expected))
    assert len(seen) > 2, "maps of one class prove nothing"


def test_class_maps_equal_the_original_s(original: SegformerForSemanticSegmentation, saved: Path) -> None:
    assert_same_maps(zoo_seg.from_pretrained(saved), original, saved, images())


@pytest.mark.parametrize(
    "rules",
    [
        {"size": {"height": 64, "width": 160}},
        {"size": {"height": 160, "width": 64}},
        {"size": 96, "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": 0.5},
        {"do_resize": False, "do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 60.0, 60.0]},
    ],
    ids=["landscape", "portrait", "old and bicubic", "as it is", "not rescaled"],
)
def test_every_preprocessing_is_theirs(
    original: SegformerForSemanticSegmentation, saved: Path, rules: dict[str, Any]
) -> None:
    change(saved / "preprocessor_config.json", **rules)
    assert_same_maps(zoo_seg.from_pretrained(saved), original, saved, images()[:6])


@pytest.mark.slow
def test_without_a_preprocessor_config_the_class_s_defaults_are_meant(
    original: SegformerForSemanticSegmentation, saved: Path
) -> None:
    (saved / "preprocessor_config.json").unlink()
    ours = zoo_seg.from_pretrained(saved)
    SegformerImageProcessor().save_pretrained(saved)
    assert_same_maps(ours, original, saved, images()[:3])


def test_records_and_repositories_say_the_same(saved: Path) -> None:
    (saved / "preprocessor_config.json").unlink()
    ours = zoo_seg.from_pretrained(saved)
    record = zoo_seg.get_weights("segformer_mit_b0.ade20k_transformers")
    assert ours.preprocess.resize == Resize(512, 512, keep_ratio=False, orientation="landscape")
    assert (ours.preprocess.mean, ours.preprocess.std) == (record.preprocess.mean, record.preprocess.std)
    assert (ours.preprocess.interpolation, ours.protocol) == (record.preprocess.interpolation, record.protocol)
    assert ours.architecture is not None
    assert ours.architecture.backbone_options == record.architecture.backbone_options
    assert ours.architecture.options == {"channels": 256, **record.architecture.options}


def test_a_file_alone_under_a_model_s_name(original: SegformerForSemanticSegmentation, saved: Path) -> None:
    ours = zoo_seg.create_model("segformer_mit_b0", saved / "model.safetensors")
    assert ours.protocol == "transformers"
    x = torch.from_numpy(reference.image_tensor(64, 64))
    with torch.inference_mode():
        expected = original(x).logits
        assert (ours.forward_logits(x) - expected).abs().max() < 2e-5 * expected.std()
    image = images()[0]
    processor = SegformerImageProcessor(size={"height": 72, "width": 96})
    found = ours.predict(image, resize=72)
    assert isinstance(found, Segmentation)
    assert (found.mask == class_map(original, processor, image)).mean() >= 0.999


def test_it_is_saved_and_opened_as_any_other(saved: Path, tmp_path: Path) -> None:
    ours, image = zoo_seg.from_pretrained(saved), images()[4]
    ours.save_pretrained(tmp_path / "mine")
    again = zoo_seg.from_pretrained(tmp_path / "mine")
    assert (again.classes, again.preprocess, again.protocol) == (ours.classes, ours.preprocess, ours.protocol)
    assert np.array_equal(again.predict(image).mask, ours.predict(image).mask)


# --- classes and colours ------------------------------------------------------------------------


def test_names_in_files_are_known_to_the_tests(written: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(written / "model.safetensors").items()}
    assert shapes == original_shapes(MODELS[0], len(NAMES))


def test_classes_are_in_the_order_of_their_numbers(saved: Path) -> None:
    model = zoo_seg.from_pretrained(saved)
    assert model.classes == tuple(NAMES.values())
    assert len(set(model.palette)) == len(NAMES)


def test_a_known_data_set_lends_its_colours(tmp_path: Path) -> None:
    city = load_manifest().datasets["cityscapes"]
    filled(MODELS[0], id2label=dict(enumerate(city.classes))).save_pretrained(tmp_path)
    model = zoo_seg.from_pretrained(tmp_path)
    assert (model.classes, model.palette) == (city.classes, city.palette)


def test_classes_that_nobody_named(tmp_path: Path) -> None:
    filled(MODELS[0], id2label=None).save_pretrained(tmp_path)
    assert zoo_seg.from_pretrained(tmp_path).classes == ("LABEL_0", "LABEL_1")


# --- containers and the Hub ---------------------------------------------------------------------


def as_is(folder: Path) -> None:
    pass


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_parts(folder: Path) -> None:
    network = SegformerForSemanticSegmentation.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size="5MB")


def in_pickled_parts(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {
        "pytorch_model-00001-of-00002.bin": sorted(tensors)[::2],
        "pytorch_model-00002-of-00002.bin": sorted(tensors)[1::2],
    }
    for name, keys in parts.items():
        torch.save({key: tensors[key] for key in keys}, folder / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


CONTAINERS = {"safetensors": as_is, "pickle": as_pickle, "parts": in_parts, "pickled parts": in_pickled_parts}


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_containers_in_a_folder_and_on_the_hub(
    hub: Hub, saved: Path, container: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images()[0]
    expected = zoo_seg.from_pretrained(saved).predict(image).mask
    container(saved)
    assert np.array_equal(zoo_seg.from_pretrained(saved).predict(image).mask, expected)
    hub.repos["org/theirs"] = Repo()
    hub.repos["org/theirs"].commit(files(saved))
    for name in ("org/theirs", "hf://org/theirs"):
        assert np.array_equal(zoo_seg.from_pretrained(name).predict(image).mask, expected)
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    assert np.array_equal(zoo_seg.from_pretrained("org/theirs").predict(image).mask, expected)


def test_a_pull_request_s_revision(hub: Hub, saved: Path) -> None:
    hub.repos["org/theirs"] = repo = Repo()
    repo.commit({"config.json": (saved / "config.json").read_bytes()})
    repo.commit(files(saved), "refs/pr/3")
    with pytest.raises(CheckpointError, match=r"org/theirs has a config.json, but no model.safetensors"):
        zoo_seg.from_pretrained("org/theirs")
    assert zoo_seg.from_pretrained("org/theirs", revision="refs/pr/3").num_classes == 12
    assert zoo_seg.from_pretrained("hf://org/theirs@refs%2Fpr%2F3").num_classes == 12


def test_without_a_preprocessor_on_the_hub_and_then_without_a_hub(
    hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved / "preprocessor_config.json").unlink()
    hub.repos["org/theirs"] = Repo()
    hub.repos["org/theirs"].commit(files(saved))
    assert zoo_seg.from_pretrained("org/theirs").preprocess.resize.short == 512
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    assert zoo_seg.from_pretrained("org/theirs").preprocess.resize.short == 512
    with pytest.raises(OfflineError):
        zoo_seg.from_pretrained("org/others")


@pytest.mark.parametrize("token", ["", "writer"], ids=["401", "403"])
def test_a_gated_repository_says_what_to_do(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    hub.repos["you/gated"] = Repo(gated=True)
    hub.repos["you/gated"].commit(files(saved))
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DownloadError, match=r"/you/gated is open to those who accept its terms: .*log in \(hf auth"):
        zoo_seg.from_pretrained("you/gated")


def test_a_repository_of_a_record_keeps_its_licence(hub: Hub, saved: Path, tmp_path: Path) -> None:
    name = "nvidia/segformer-b0-finetuned-ade-512-512"
    for each in (name, "org/theirs"):
        hub.repos[each] = Repo()
        hub.repos[each].commit(files(saved))
    model = zoo_seg.from_pretrained(name)
    model.save_pretrained(tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    assert "non-commercial (NVIDIA's SegFormer licence)" in card
    assert zoo_seg.create_model("segformer_mit_b0", f"hf://{name}").info.licence == model.info.licence
    assert zoo_seg.from_pretrained("org/theirs").info.licence.weights is None


def test_predict_takes_it(hub: Hub, saved: Path, tmp_path: Path) -> None:
    hub.repos["org/theirs"] = Repo()
    hub.repos["org/theirs"].commit(files(saved))
    image = images()[0]
    image.save(tmp_path / "a.png")
    expected = zoo_seg.from_pretrained(saved).predict(image).mask
    for index, weights in enumerate((str(saved), "hf://org/theirs")):
        out = tmp_path / str(index)
        assert main(["predict", "--weights", weights, str(tmp_path / "a.png"), "--out", str(out)]) == 0
        assert np.array_equal(np.asarray(Image.open(out / "a_mask.png")), expected)


# --- what is refused ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another network": (
        "config.json",
        {"architectures": ["MobileViTForSemanticSegmentation"], "model_type": "mobilevit"},
        "architectures.*found MobileViTForSemanticSegmentation; supported are SegformerForSemanticSegmentation",
    ),
    "only a type": ("config.json", {"architectures": ..., "model_type": "dpt"}, 'model_type "dpt".*supported are Segf'),
    "depths": (
        "config.json",
        {"depths": [1, 1, 1, 1]},
        r"depths.*found \[1, 1, 1, 1\] with hidden_sizes \[32, 64.*mit_b5",
    ),
    "strides": ("config.json", {"strides": [2, 2, 2, 2]}, r"strides.*expected \[4, 2, 2, 2\]"),
    "no classes": ("config.json", {"id2label": ..., "num_labels": 0}, "num_labels.*found 0, expected 1 to 65536"),
    "width": ("config.json", {"decoder_hidden_size": -1}, "decoder_hidden_size.*found -1, expected 1 to"),
    "channels": ("config.json", {"num_channels": 10**9}, "num_channels.*found 1000000000, expected 1 to"),
    "names": ("config.json", {"id2label": {"0": "a", "2": "b"}}, "id2label.*a name for each of 0 to 1"),
    "another processor": (
        "preprocessor_config.json",
        {"image_processor_type": "ViTImageProcessor"},
        "image_processor_type.*ViTImageProcessor.*supported is SegformerImageProcessor",
    ),
    "resample": ("preprocessor_config.json", {"resample": 0}, r"resample.*expected 2 \(bilinear\) or 3 \(bicubic\)"),
    "size": ("preprocessor_config.json", {"size": {"shortest_edge": 512}}, "size.*expected height and width"),
    "mean": ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean.*one for each of the 3 channels"),
}


@pytest.mark.parametrize(("name", "values", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_named(hub: Hub, saved: Path, name: str, values: dict[str, Any], message: str) -> None:
    change(saved / name, **values)
    with pytest.raises(ManifestError, match=message):
        zoo_seg.from_pretrained(saved)
    hub.repos["org/theirs"] = Repo()
    hub.repos["org/theirs"].commit(files(saved))
    with pytest.raises(CheckpointError, match=message) as refusal:
        zoo_seg.from_pretrained("org/theirs")
    assert "model.safetensors" not in "".join(path for _, path in hub.asked), "large files before it was known"
    assert str(refusal.value).startswith("org/theirs is not a network")


@pytest.mark.parametrize("path", ["../model.safetensors", "/etc/passwd", "a.json", ".hidden.bin", 3])
def test_an_index_names_files_beside_it_only(saved: Path, path: Any) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": path}}), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"weight_map.*plain name of a file"):
        zoo_seg.from_pretrained(saved)


def test_a_missing_part_is_named(hub: Hub, saved: Path) -> None:
    in_parts(saved)
    (saved / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ZooSegError, match=r"model-00002-of-00004\.safetensors"):
        zoo_seg.from_pretrained(saved)
    hub.repos["org/theirs"] = Repo()
    hub.repos["org/theirs"].commit(files(saved))
    with pytest.raises(
        CheckpointError, match=r"has no model-00002-of-00004\.safetensors, which its model\.safetensors"
    ):
        zoo_seg.from_pretrained("org/theirs")


# --- the records --------------------------------------------------------------------------------


def test_files_of_records_have_names_of_their_own() -> None:
    names = [file.name for record in list_weights(source="transformers") for file in record.files]
    assert len(set(names)) == len(names) >= 16
    assert names[0] == "nvidia--segformer-b0-finetuned-ade-512-512--model.safetensors"


def test_records_change_no_default() -> None:
    records = [each for each in list_weights(source="transformers") if each.architecture.family == "segformer"]
    assert len(records) == 15
    for record in records:
        assert zoo_seg.get_weights(record.model, record.dataset).source != "transformers"
        assert "non-commercial" in (record.licence.weights or "")
        assert record.protocol == "transformers"
        assert record.preprocess.interpolation == "bilinear"
