"""From a weight file to a network: containers, layouts, strictness, and the copy in the cache."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import first_of_each_family_fast
from helpers.reference import checkpoint, image_tensor, key_list, keys, state_dict
from safetensors.torch import save_file

import zoo_seg
from zoo_seg.checkpoints.convert import convert
from zoo_seg.checkpoints.opening import open_checkpoint
from zoo_seg.errors import CheckpointError, OptionError, UnknownNameError

MODEL = "semanticfpn_resnet50"
MOBILE = "semanticfpn_mobilenetv4_small"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


def site_file(folder: Path, name: str, *, legacy: bool = False) -> Path:
    """A full-size stand-in for a published file, under its published name."""
    record = zoo_seg.get_weights(name)
    path = folder / record.files[0].name
    layout: Any = record.source
    return path if path.exists() else checkpoint(path, keys(*key_list(record)), layout=layout, legacy=legacy)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.from_numpy(image_tensor(65, 97)))


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", [f"{MODEL}.voc_ssseg", f"{MODEL}.cityscapes_mmseg"])
def test_a_tag_becomes_a_network(
    name: str, legacy: bool, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path, name, legacy=legacy)
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(tmp_path))
    record = zoo_seg.get_weights(name)

    model = zoo_seg.create_model(MODEL, record.tag)
    assert not model.training
    assert model.weights == record
    assert model.protocol == record.source
    assert model.classes == record.classes
    assert model.palette == record.palette
    assert model.num_classes == record.num_classes
    first = logits(model)

    # The second load maps the safetensors copy: the mirror is gone, and so may be the pickle's reader.
    path.unlink()
    monkeypatch.setattr(torch, "load", None)
    again = zoo_seg.create_model(MODEL, record.tag)
    assert torch.equal(logits(again), first)
    copies = list((home / "weights" / name).glob("*.safetensors"))
    assert len(copies) == 1
    assert copies[0].stat().st_mode & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.slow
def test_a_damaged_copy_is_made_again(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{MODEL}.voc_ssseg"
    site_file(folder, name)
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(folder))
    expected = logits(zoo_seg.create_model(MODEL, "voc"))
    (copy,) = (home / "weights" / name).glob("*.safetensors")
    content = copy.read_bytes()
    copy.write_bytes(content[:-4] + b"\x00\x00\x80\x7f")
    assert torch.equal(logits(zoo_seg.create_model(MODEL, "voc")), expected)
    assert copy.read_bytes()[-4:] == content[-4:]


@pytest.mark.slow
def test_a_copy_of_an_older_naming_is_made_again(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site_file(folder, f"{MODEL}.voc_ssseg")
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(folder))
    monkeypatch.setattr("zoo_seg.pretrained._NAMING", "0")
    expected = logits(zoo_seg.create_model(MODEL, "voc"))
    monkeypatch.undo()
    monkeypatch.setenv("ZOO_SEG_HOME", str(home))
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    assert torch.equal(logits(zoo_seg.create_model(MODEL, "voc")), expected)
    (copy,) = (home / "weights" / f"{MODEL}.voc_ssseg").glob("*.safetensors")
    assert open_checkpoint(copy)[1]["naming"] == "3"


@pytest.mark.slow
def test_weights_without_room_for_a_copy(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site_file(folder, f"{MODEL}.voc_ssseg")
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(folder))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo_seg.pretrained.save_file", full)
    assert zoo_seg.create_model(MODEL, "voc").num_classes == 21
    assert not list(home.rglob("*.safetensors"))


@pytest.mark.slow
def test_a_record_whose_file_has_other_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = zoo_seg.get_weights(MODEL, "voc")
    checkpoint(tmp_path / record.files[0].name, keys("ssseg", f"{MODEL}_os32_cityscapes"), layout="ssseg")
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"has 19 classes, the record .* 21"):
        zoo_seg.create_model(MODEL, "voc")


# --- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["ssseg", "ssseg_before_2020_12_14"])
def test_both_namings_of_pspnet_give_the_same_network(group: Any, tmp_path: Path) -> None:
    name = "pspnet_resnet50_os16_voc"
    tensors = state_dict(keys("ssseg", name))
    if group != "ssseg":
        older = [key for key, _ in keys(group, name)]
        assert len(older) == len(tensors)
        assert set(older) != set(tensors)
        tensors = OrderedDict(zip(older, tensors.values(), strict=True))
    architecture = zoo_seg.get_weights("pspnet_resnet50_os16.voc").architecture
    converted = convert({f"module.{key}": tensor for key, tensor in tensors.items()}, architecture)
    renamed = converted.tensors
    assert converted.naming == "ssseg"
    assert "head.norm.weight" in renamed
    source = "bottleneck" if group == "ssseg" else "fuse_layer"
    whole = tensors[f"ppm_net.{source}.0.weight"]
    assert torch.equal(renamed["head.bottleneck.weight"], whole[:, :2048])
    for i in range(4):
        part = whole[:, 2048 + 512 * i : 2048 + 512 * (i + 1)]
        assert torch.equal(renamed[f"head.taps.{i}.weight"], part.transpose(0, 1))


@pytest.mark.slow
def test_a_bare_path_tells_classes_and_source(folder: Path, tmp_path: Path) -> None:
    mmseg = zoo_seg.create_model(MODEL, site_file(folder, f"{MODEL}.cityscapes_mmseg"))
    assert mmseg.protocol == "mmseg"
    assert mmseg.weights is None
    assert mmseg.preprocess.resize is None
    assert mmseg.classes == tuple(f"class_{i}" for i in range(19))
    assert len(set(mmseg.palette)) == 19

    ours = tmp_path / "ours.safetensors"
    save_file(mmseg.state_dict(), ours)
    again = zoo_seg.create_model("semantic_fpn_r50", str(ours))
    assert again.protocol == "ssseg"
    assert torch.equal(logits(again), logits(mmseg))
    linked = zoo_seg.create_model(MODEL, ours.as_uri())
    assert torch.equal(logits(linked), logits(mmseg))
    assert sorted(tmp_path.iterdir()) == [ours]  # nothing is left beside a user's file


@pytest.mark.slow
def test_num_classes_starts_the_classifiers_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = zoo_seg.get_weights("fcn_resnet50_os16", "voc")
    checkpoint(tmp_path / record.files[0].name, keys(*key_list(record)), layout="ssseg")
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(tmp_path))
    whole = zoo_seg.fcn_resnet50_os16("voc")
    assert not caplog.messages
    model = zoo_seg.fcn_resnet50_os16("voc", num_classes=7)
    assert caplog.messages == [
        "num_classes=7 instead of 21: aux_heads.0.classifier.bias, aux_heads.0.classifier.weight, "
        "head.classifier.bias, head.classifier.weight start from random values"
    ]
    assert model.num_classes == 7
    assert model.classes[6] == "class_6"
    assert logits(model).shape[1] == 7
    assert torch.equal(model.head.convs[0].conv.weight, whole.head.convs[0].conv.weight)
    assert model.aux_heads[0].classifier.weight.std() > 0
    assert zoo_seg.fcn_resnet50_os16("voc", num_classes=21).classes == whole.classes
    model.train()
    model(torch.zeros(2, 3, 33, 33)).sum().backward()  # trainable, not a view of the file
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert torch.equal(zoo_seg.fcn_resnet50_os16("voc").head.classifier.weight, whole.head.classifier.weight)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans_adapts_the_stem(in_chans: int, folder: Path) -> None:
    path = site_file(folder, f"{MODEL}.cityscapes_mmseg")
    model = zoo_seg.create_model(MODEL, path, in_chans=in_chans)
    rgb = zoo_seg.create_model(MODEL, path)
    grey = torch.rand(1, 1, 32, 32)
    assert model(torch.rand(1, in_chans, 33, 40)).shape == (1, 19, 33, 40)
    if in_chans == 1:  # the sum over the channels: a grey image gives what its RGB copy gives
        torch.testing.assert_close(model(grey), rgb(grey.expand(1, 3, 32, 32)), rtol=1e-3, atol=1e-2)


# --- what is refused ----------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_never_run(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": Evil()}}, "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"evil.pth was not opened: it asks for posix.system"):
        zoo_seg.create_model(MODEL, "evil.pth")
    assert not Path("executed").exists()


def _short(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("page.pth", b"<!DOCTYPE html><html>", "begins with b'<!DOCTYPE html>.*expected a torch checkpoint"),
        ("empty.pth", b"", "begins with b''"),
        ("list.pth", [1, 2, 3], "holds a list; expected a dictionary of tensors"),
        ("numbers.pth", {"model": {"a": 1, "b": "x"}}, r"a \(int\), b \(str\) among 2 entries"),
        ("nothing.pth", {"model": {}}, "holds nothing"),
        ("foreign.pth", {"encoder.a": torch.zeros(1)}, "such as encoder.a; expected the names of"),
        ("pickle.pth", pickle.dumps({"a": 1}, protocol=2), "is not a readable checkpoint|damaged"),
        ("half.safetensors", b'\x08\x00\x00\x00\x00\x00\x00\x00{"a":', "not a whole safetensors file"),
    ],
)
def test_files_that_are_no_weights(name: str, content: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=says):
        zoo_seg.create_model(MODEL, path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_half_a_checkpoint(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({"model": {"head.a": torch.zeros(5000)}}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(CheckpointError, match=r"half.pth is (damaged|not a readable)"):
        open_checkpoint(path)


def test_what_does_not_fit_is_a_table(folder: Path) -> None:
    path = site_file(folder, f"{MODEL}.voc_ssseg")
    with pytest.raises(CheckpointError, match=r"no fcn on resnet50c.*fpn_neck.*looks like .*semanticfpn"):
        zoo_seg.create_model("fcn_resnet50_os8", path)
    with pytest.raises(CheckpointError) as caught:
        zoo_seg.create_model("semanticfpn_resnet101", path)
    message = str(caught.value)
    assert "does not fit the network in" in message
    assert "more" in message.splitlines()[-1]
    rows = [line.split() for line in message.splitlines()[1:]]
    assert rows[0] == ["tensor", "in", "the", "file", "in", "the", "network"]
    assert ["backbone_net.layer3.6.conv1.weight", "-", "256x1024x1x1"] in rows  # in the file's own words


def test_a_shape_that_differs(tmp_path: Path) -> None:
    tensors = zoo_seg.semanticfpn_r50(num_classes=3).state_dict()
    tensors["head.neck.output.1.conv.weight"] = torch.zeros(9, 9, 3, 3)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"output.1.conv.weight +9x9x3x3 +256x256x3x3"):
        zoo_seg.create_model(MODEL, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("model", "arguments", "error", "says"),
    [
        ("pspnet", {}, UnknownNameError, "did you mean"),
        (MODEL, {"pretrained": "ade"}, UnknownNameError, "its tags are ade20k, cityscapes, voc"),
        (MODEL, {"pretrained": "missing.pth"}, CheckpointError, "there is no file 'missing.pth'"),
        (MODEL, {"pretrained": Path("missing")}, CheckpointError, "there is no file 'missing'"),
        (MODEL, {"pretrained": "ftp://host/a.pth"}, Exception, "https://"),
        (MODEL, {"pretrained": 1}, OptionError, "the weights are of type int; expected a tag"),
        (MODEL, {"pretrained": {"a": 1}}, OptionError, "of type dict; .* goes into load_state_dict"),
        (MODEL, {"num_classes": 0}, OptionError, "num_classes is 0"),
        (MODEL, {"num_classes": "7"}, OptionError, "num_classes is '7'"),
        (MODEL, {"in_chans": -1}, OptionError, "in_chans is -1"),
    ],
)
def test_wrong_arguments(model: str, arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        zoo_seg.create_model(model, **arguments)


@pytest.mark.parametrize("make", [zoo_seg.create_model, zoo_seg.semanticfpn_mobilenetv4_small])
def test_true_is_the_models_first_weights_and_false_none(make: Any) -> None:
    """The habit of torchvision and timm."""
    name = [MOBILE] if make is zoo_seg.create_model else []
    assert make(*name, pretrained=True).weights == zoo_seg.list_weights(MOBILE)[0]
    assert make(*name, pretrained=False).weights is None


def test_true_for_a_model_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo_seg.pretrained.list_weights", lambda model: [])
    with pytest.raises(UnknownNameError, match=f"{MODEL} has no published weights; name a path or a link"):
        zoo_seg.create_model(MODEL, pretrained=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": ["a", "b"]}, "2 classes for a network with 3; expected a name for each"),
        ({"palette": [(0, 0, 0)]}, "3 classes but 1 palette colours"),
        ({"palette": [(0, 0, 0), (1, 1, 1), (0, 256, 0)]}, r"palette has \(0, 256, 0\); expected \(red, green, blue\)"),
        ({"palette": [(0, 0, 0), (1, 1, 1), (0.5, 0, 0)]}, "as integers from 0 to 255"),
        ({"palette": [0, 1, 2]}, "palette has 0; expected"),
    ],
)
def test_names_and_colours_that_do_not_fit(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        zoo_seg.build_model("fcn", "lcnet_050", 3, channels=8, **options)


@pytest.mark.parametrize("name", first_of_each_family_fast())
def test_without_weights_every_model_trains(name: str) -> None:
    with torch.device("meta"):
        model = zoo_seg.create_model(name, num_classes=4, in_chans=5)
    assert model.training
    assert model.weights is None
    assert model.num_classes == 4
    assert model(torch.empty(2, 5, 64, 96, device="meta")).shape == (2, 4, 64, 96)
