"""Copies of a record's weights in another container and under other names: tried like any mirror, converted exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import runner
from helpers.hub_server import Hub, Repo
from helpers.reference import Key, image_tensor, published_reference, state_dict
from helpers.registries import open_registry
from helpers.upernet_original import UPERNETS, as_converted, convnext, names_in_file, shapes_in_file, swin, upernet
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

import zoo_seg
from zoo_seg.backbones.convnext import _MAPS as CONVNEXT_MAPS
from zoo_seg.backbones.convnext import ConvNeXt
from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.staged import create_with_timm_names
from zoo_seg.backbones.swin import _MAPS as SWIN_MAPS
from zoo_seg.backbones.swin import SwinTransformer
from zoo_seg.checkpoints.convert import convert
from zoo_seg.checkpoints.digest import tensors_sha256
from zoo_seg.errors import CheckpointError, DownloadError, HashMismatchError
from zoo_seg.hub import cache
from zoo_seg.manifest import Architecture, get_weights, list_weights
from zoo_seg.pretrained import from_tensors

pytestmark = pytest.mark.slow

MICRO = {
    "swin": ("swin_tiny", partial(SwinTransformer, (1, 2, 1, 2), 1, 4), SWIN_MAPS),
    "convnext": ("convnext_tiny", partial(ConvNeXt, (1, 2, 1, 1), 8), CONVNEXT_MAPS),
}
"""Backbones small enough for every test: a published one of more blocks, ours, and its names in files."""
HEADS = {"hidden_size": 16, "auxiliary_channels": 8, "num_labels": 3}
ID = "micro.toys_mmseg"


def theirs(kind: str) -> PreTrainedModel:
    return upernet(swin(32, (1, 2, 1, 2), 4) if kind == "swin" else convnext(8, (1, 2, 1, 1)), **HEADS)


def mmseg_keys(published: str, network: PreTrainedModel) -> list[Key]:
    """What mmseg's file of a smaller network has: the published names whose counterparts there are."""
    shapes, keys = shapes_in_file(network), []
    for name, shape in published_reference(f"upernet_{published}.mmseg").keys:
        there = [shapes.get(each) for each in as_converted({name: torch.empty(shape, device="meta")})]
        if name.endswith("relative_position_index"):
            there = [(16, 16)] if any(key == name.replace("index", "bias_table") for key, _ in keys) else [None]
        if None not in there:
            first = there[0] or ()
            keys.append((name, (len(there) * first[0], *first[1:]) if first else ()))
    return keys


@dataclass
class Copied:
    """A record of mmseg's whose host is a folder, and the copy of its file on the Hub."""

    host: Path
    hub: Hub
    manifest: Path
    tensors: Mapping[str, Tensor]
    """Of the host's file."""
    folder: Path

    def say(self, file: int = 0, **facts: Any) -> None:
        """What the record says of one of its files."""
        raw = json.loads(self.manifest.read_text(encoding="utf-8"))
        raw["weights"][ID]["files"][file].update(facts)
        self.manifest.write_text(json.dumps(raw), encoding="utf-8")

    def copy(self, tensors: Mapping[str, Tensor]) -> bytes:
        """Put a copy on the Hub."""
        path = self.folder / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        self.hub.repos["org/copy"].commit({"model.safetensors": path.read_bytes()})
        return path.read_bytes()

    @property
    def asked(self) -> bool:
        return any("org/copy" in path for _, path in self.hub.asked)

    def forget(self) -> None:
        """The host is gone, and so is what was fetched."""
        self.host.unlink()
        for path in cache._folder(get_weights(ID)).iterdir():
            path.unlink()


@pytest.fixture(params=list(MICRO))
def copied(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copied]:
    published, build, maps = MICRO[request.param]
    open_registry(monkeypatch)
    register_backbone("micro", partial(create_with_timm_names, "micro", build), key_maps=maps)
    network = theirs(request.param)
    tensors = state_dict(mmseg_keys(published, network))
    host = tmp_path / "weights-01234567.pth"
    torch.save({"meta": {"epoch": 1}, "state_dict": tensors}, host)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(described(host.as_uri(), "hf://org/copy/model.safetensors")), encoding="utf-8")
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(manifest))
    with Hub() as hub:
        hub.take_the_place_of_the_hub(monkeypatch, no_token=tmp_path / "no token")
        hub.repos["org/copy"] = Repo()
        made = Copied(host, hub, manifest, tensors, tmp_path)
        counterpart = as_converted(tensors)
        put_into(network, counterpart)
        made.copy(counterpart)
        yield made


def put_into(network: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """A file's tensors, which are all that transformers reads."""
    names = names_in_file(network)
    assert set(names.values()) == set(tensors)
    network.load_state_dict({name: tensors[in_file] for name, in_file in names.items()}, strict=False)


def described(*links: str) -> dict[str, Any]:
    architecture = {"family": "upernet", "backbone": "micro", "options": {"channels": 16, "aux_channels": 8}}
    record = {
        "dataset": "toys",
        "source": "mmseg",
        "parameters": 1000,
        "files": [{"url": link} for link in links],
        "metrics": [],
        "recipe": "mmseg_ade20k_160k_adamw_aux",
        "preprocess": "imagenet_512",
        "provenance": {"config_url": None, "log_url": None},
    }
    toys = {
        "title": "Toys",
        "url": "https://zoo.invalid/data",
        "licence": None,
        "ignore_index": 255,
        "classes": ["ground", "wall", "sky"],
        "palette": [[10, 20, 30], [200, 0, 0], [0, 0, 200]],
    }
    return {
        "schema_version": 2,
        "datasets": {"toys": toys},
        "models": {"micro": {"title": "Micro", "architecture": architecture}},
        "weights": {ID: record},
    }


def test_the_copy_is_the_same_network_bit_for_bit(copied: Copied) -> None:
    from_host = zoo_seg.create_model("micro", "toys_mmseg")
    assert not copied.asked, "the host comes first"
    copied.forget()
    from_copy = zoo_seg.create_model("micro", "toys_mmseg")
    assert copied.asked
    here, there = from_host.state_dict(), from_copy.state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    x = torch.from_numpy(image_tensor(83, 121))
    with torch.inference_mode():
        assert torch.equal(from_host(x), from_copy(x))
    assert from_host.info == from_copy.info, "rules, classes, digest of the tensors"
    assert from_copy.protocol == "mmseg"
    assert from_copy.preprocess.interpolation == "opencv"


def test_transformers_computes_the_same_with_it(copied: Copied, request: pytest.FixtureRequest) -> None:
    network = theirs(request.node.callspec.params["copied"])
    put_into(network, as_converted(copied.tensors))
    x = torch.from_numpy(image_tensor(128, 160))
    with torch.inference_mode():
        expected = network(x).logits
        found = zoo_seg.create_model("micro", "toys_mmseg")(x)
    assert (found - expected).abs().max() < 2e-5 * expected.std()


def test_the_digest_knows_no_names(copied: Copied) -> None:
    architecture = get_weights(ID).architecture
    one, other = (convert(each, architecture) for each in (copied.tensors, as_converted(copied.tensors)))
    assert (one.naming, other.naming) == ("mmseg", "transformers")
    assert tensors_sha256(one.tensors) == tensors_sha256(other.tensors)


def test_a_pickle_is_a_copy_as_well(copied: Copied, tmp_path: Path) -> None:
    expected = zoo_seg.create_model("micro", "toys_mmseg").state_dict()
    copied.forget()
    torch.save(as_converted(copied.tensors), tmp_path / "copy.bin")
    copied.hub.repos["org/copy"].commit({"pytorch_model.bin": (tmp_path / "copy.bin").read_bytes()})
    copied.say(1, url="hf://org/copy/pytorch_model.bin")
    for _ in range(2):  # the second time from its safetensors copy
        found = zoo_seg.create_model("micro", "toys_mmseg").state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- what is not that copy ----------------------------------------------------------------------


def test_a_swapped_copy_is_refused_by_the_digest(copied: Copied) -> None:
    digest = tensors_sha256(convert(copied.tensors, get_weights(ID).architecture).tensors)
    copied.say(tensors_sha256=digest)
    copied.host.unlink()
    copied.copy(state_dict(((name, tuple(each.shape)) for name, each in as_converted(copied.tensors).items()), seed=1))
    with pytest.raises(CheckpointError, match=f"other tensors than were published: expected the digest {digest}"):
        zoo_seg.create_model("micro", "toys_mmseg")


def test_a_copy_of_the_right_digest_is_taken(copied: Copied) -> None:
    digest = tensors_sha256(convert(copied.tensors, get_weights(ID).architecture).tensors)
    copied.say(tensors_sha256=digest)
    copied.host.unlink()
    assert zoo_seg.create_model("micro", "toys_mmseg").info.tensors_sha256 == digest


def test_a_damaged_copy_is_refused(copied: Copied) -> None:
    copied.host.unlink()
    whole = copied.hub.repos["org/copy"].files()["model.safetensors"]
    copied.hub.repos["org/copy"].commit({"model.safetensors": whole[:-100]})
    with pytest.raises(DownloadError, match=r"weights-01234567\.pth(.|\n)*org/copy(.|\n)*whose header announces"):
        zoo_seg.create_model("micro", "toys_mmseg")


def test_a_copy_of_another_hash_is_refused(copied: Copied) -> None:
    copied.host.unlink()
    copied.say(1, sha256="0" * 64)
    with pytest.raises(HashMismatchError, match="expected sha256 0000"):
        zoo_seg.create_model("micro", "toys_mmseg")


def test_a_file_without_the_rest_is_refused(copied: Copied) -> None:
    copied.host.unlink()
    tensors = as_converted(copied.tensors)
    copied.copy({name: tensor for name, tensor in tensors.items() if not name.startswith("auxiliary_head.")})
    with pytest.raises(CheckpointError, match=r"auxiliary_head\.classifier\.weight"):
        zoo_seg.create_model("micro", "toys_mmseg")


# --- the commands -------------------------------------------------------------------------------


def test_the_commands_deal_with_it(
    copied: Copied, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner(capfd)
    shown = run("info", ID).out
    assert shown.index(copied.host.name) < shown.index("hf://org/copy/model.safetensors")
    copied.host.unlink()
    fetched = run("download", ID)
    assert fetched.code == 0, fetched.err
    assert "org--copy--model.safetensors" in fetched.out
    assert "ok" in run("verify").out
    expected = zoo_seg.create_model("micro", "toys_mmseg").state_dict()
    assert run("download", ID, "--to", tmp_path / "carried").code == 0
    copied.hub.shutdown()
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    zoo_seg.create_model("micro", "toys_mmseg")
    monkeypatch.setenv("ZOO_SEG_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(tmp_path / "carried"))
    found = zoo_seg.create_model("micro", "toys_mmseg").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    path = next((tmp_path / "elsewhere" / "weights" / ID).glob("*.safetensors"))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert "damaged" in run("verify").out


# --- the published copies -----------------------------------------------------------------------


def copies() -> Iterator[Any]:
    """The nine records with a copy; the first of each kind is always run."""
    seen = set()
    for record in list_weights("upernet_*", source="mmseg"):
        if len(record.files) > 1:
            kind = record.architecture.backbone.split("_")[0]
            yield pytest.param(record.id, marks=[pytest.mark.slow] if kind in seen else [])
            seen.add(kind)


@pytest.mark.parametrize("name", list(copies()))
def test_published_copies_fit_their_records(name: str) -> None:
    """By names and shapes: those of mmseg's file, converted, are those that transformers saves."""
    record = get_weights(name)
    host, copy = record.files
    assert "openmmlab" in host.url
    assert copy.url.startswith("hf://openmmlab/upernet-")
    assert copy.mirrors == ()
    keys = published_reference(f"{record.model}.mmseg").keys
    with torch.device("meta"):
        network = upernet(UPERNETS[record.architecture.backbone](), num_labels=record.num_classes)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in keys}
    counterpart = as_converted(tensors)
    assert {key: tuple(each.shape) for key, each in counterpart.items()} == shapes_in_file(network)
    one, other = (convert(each, record.architecture).tensors for each in (tensors, counterpart))
    assert {key: each.shape for key, each in one.items()} == {key: each.shape for key, each in other.items()}


def test_all_nine_have_one() -> None:
    assert len(list(copies())) == 9


def test_a_stated_network_is_not_the_one_that_names_imply() -> None:
    """A copy brings tensors; by which rules they compute is its record's word."""
    stated = Architecture("segformer", "mit_b0", options={"projection": "linear"})
    names = {
        "segformer.encoder.layer_norm.0.weight": torch.ones(32),
        "segformer.encoder.layer_norm.0.bias": torch.zeros(32),
    }
    assert from_tensors(Path("x"), names, stated, stated=True).architecture.backbone_options == {}
    assert from_tensors(Path("x"), names, stated).architecture.backbone_options == {"norm_eps": 1e-5}
