"""Networks on the Hugging Face Hub: huggingface_hub's own client, against a Hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Zoo
from helpers.hub_server import Hub, Repo
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save

import zoo_seg
from zoo_seg import SegmentationModel
from zoo_seg.cli import main
from zoo_seg.errors import (
    CheckpointError,
    DownloadError,
    HashMismatchError,
    OfflineError,
    OptionError,
    PushError,
    ZooSegError,
)
from zoo_seg.hub import huggingface
from zoo_seg.info import ModelInfo
from zoo_seg.manifest import Metric, TestOptions
from zoo_seg.saving import card as cards

CLASSES, PALETTE = ("soil", "crop", "weed"), ((90, 60, 30), (0, 160, 0), (200, 0, 120))
FILES = {".gitattributes", "README.md", "config.json", "model.safetensors"}
X = torch.linspace(-2, 2, 3 * 48 * 64).reshape(1, 3, 48, 64)


def small(**options: Any) -> SegmentationModel:
    options = {"output_stride": 16, "channels": 8, "classes": CLASSES, "palette": PALETTE, **options}
    return zoo_seg.build_model("fcn", "mobilenetv3_small_050", len(options["classes"]), **options).eval()


def assert_same(one: SegmentationModel, other: SegmentationModel) -> None:
    values = other.state_dict()
    assert all(torch.equal(value, values.pop(name)) for name, value in one.state_dict().items())
    assert not values
    assert (one.classes, one.palette, one.preprocess) == (other.classes, other.palette, other.preprocess)
    with torch.inference_mode():
        torch.testing.assert_close(one(X), other(X))


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    return small()


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub that the client asks, logged in as one who may write to `org`."""
    with Hub() as hub:
        hub.take_the_place_of_the_hub(monkeypatch, no_token=tmp_path / "no token")
        yield hub


@pytest.fixture
def pushed(hub: Hub, model: SegmentationModel) -> Repo:
    """`org/mine` with the network, also as branch `v1`; what was asked for it is forgotten."""
    model.push_to_hub("org/mine")
    repo = hub.repos["org/mine"]
    repo.branches["v1"] = repo.branches["main"]
    hub.asked.clear()
    return repo


# --- there and back -----------------------------------------------------------------------------


def test_pushed_and_loaded_elsewhere(hub: Hub, model: SegmentationModel) -> None:
    url = model.push_to_hub("org/mine", commit_message="A first one")
    repo = hub.repos["org/mine"]
    assert url == f"{hub.url}/org/mine/commit/{repo.branches['main']}"
    assert set(repo.files()) == FILES
    assert not repo.private
    assert 'zoo_seg.from_pretrained("org/mine")' in repo.files()["README.md"].decode()
    loaded = zoo_seg.from_pretrained("org/mine")
    assert_same(model, loaded)
    assert not loaded.training
    assert loaded.weights is None
    assert loaded.num_classes == 3


@pytest.mark.parametrize("name", ["org/mine", "org/mine@v1", "hf://org/mine", "hf://org/mine@v1"])
def test_names_of_a_repository(pushed: Repo, model: SegmentationModel, name: str) -> None:
    pushed.commit({"config.json": b"{}"}, "main" if "@" in name else "other")
    assert_same(model, SegmentationModel.from_pretrained(name, progress=False))
    if "@" not in name:
        pushed.commit({"config.json": b"{}"})
        assert_same(model, zoo_seg.from_pretrained(name, revision="v1"))
        assert_same(model, zoo_seg.from_pretrained(name, revision=pushed.branches["v1"]))
    else:
        with pytest.raises(OptionError, match="names a revision already"):
            zoo_seg.from_pretrained(name, revision="v2")


def test_cached_until_the_branch_moves(hub: Hub, pushed: Repo, model: SegmentationModel) -> None:
    zoo_seg.from_pretrained("org/mine")
    hub.asked.clear()
    zoo_seg.from_pretrained("org/mine")
    assert hub.asked == [("HEAD", "/org/mine/resolve/main/config.json")]
    zoo_seg.from_pretrained("org/mine", revision=pushed.branches["main"])
    assert len(hub.asked) == 1  # a commit needs no answer
    other = small()
    other.push_to_hub("org/mine")
    assert_same(other, zoo_seg.from_pretrained("org/mine"))
    assert_same(model, zoo_seg.from_pretrained("org/mine@v1"))


def test_both_files_are_of_one_commit(pushed: Repo, model: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = huggingface._fetch

    def with_a_push_between(repository: Any, name: str, progress: bool) -> bool:
        if name == "model.safetensors":
            pushed.commit({name: save({"other": torch.zeros(1)})})
        return fetch(repository, name, progress)

    monkeypatch.setattr(huggingface, "_fetch", with_a_push_between)
    assert_same(model, zoo_seg.from_pretrained("org/mine"))


@pytest.mark.parametrize("variable", ["ZOO_SEG_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(
    hub: Hub, pushed: Repo, model: SegmentationModel, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    zoo_seg.from_pretrained("org/mine")
    hub.asked.clear()
    monkeypatch.setenv(variable, "1")
    assert_same(model, zoo_seg.from_pretrained("org/mine"))
    assert_same(model, zoo_seg.from_pretrained("org/mine", revision=pushed.branches["main"]))
    for name in ("org/mine@v1", f"org/mine@{'0' * 40}", "org/never"):
        with pytest.raises(OfflineError, match="load it once on a machine with network"):
            zoo_seg.from_pretrained(name)
    with pytest.raises(PushError, match="switches the network off"):
        model.push_to_hub("org/mine")
    assert hub.asked == []


@pytest.mark.parametrize("trouble", [503, "gone"])
def test_a_hub_out_of_order(
    hub: Hub,
    pushed: Repo,
    model: SegmentationModel,
    caplog: pytest.LogCaptureFixture,
    trouble: int | str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was cached is used, with a warning; the rest is told in one line."""
    zoo_seg.from_pretrained("org/mine")
    if trouble == "gone":
        hub.shutdown()
        hub.server_close()
    else:
        hub.broken = int(trouble)
    assert_same(model, zoo_seg.from_pretrained("org/mine"))
    assert f"commit {pushed.branches['main']}" in caplog.text
    with pytest.raises(DownloadError, match=r"does not answer for org/mine@v1 .*try again later") as refusal:
        zoo_seg.from_pretrained("hf://org/mine@v1")
    assert "\n" not in str(refusal.value)


def test_a_cache_on_the_way_is_completed(hub: Hub, pushed: Repo, home: Path, model: SegmentationModel) -> None:
    zoo_seg.from_pretrained("org/mine")
    (values,) = home.rglob("model.safetensors")
    values.write_bytes(values.read_bytes()[:-1])
    assert_same(model, zoo_seg.from_pretrained("org/mine"))
    (config,) = home.rglob("config.json")
    config.write_text("{}")
    assert_same(model, zoo_seg.from_pretrained("org/mine"))


def test_values_other_than_announced_are_refused(hub: Hub, pushed: Repo, home: Path) -> None:
    values = pushed.files()["model.safetensors"]
    hub.spoiled[hashlib.sha256(values).hexdigest()] = values[:-1] + bytes([values[-1] ^ 1])
    with pytest.raises(HashMismatchError, match="expected sha256"):
        zoo_seg.from_pretrained("org/mine")
    assert not list(home.rglob("model.safetensors"))


# --- pretrained= --------------------------------------------------------------------------------


def test_a_factory_takes_names_and_colours_from_the_repository(
    hub: Hub, zoo: Zoo, model: SegmentationModel, caplog: pytest.LogCaptureFixture
) -> None:
    own = small(palette=PALETTE[::-1])
    own.push_to_hub("org/mine")
    assert_same(own, zoo_seg.create_model("toy_r50", "hf://org/mine"))
    assert_same(own, zoo_seg.create_model("toy_r50", "hf://org/mine@main", num_classes=3))
    seven = zoo_seg.create_model("toy_r50", "hf://org/mine", num_classes=7)
    assert seven.classes[0] == "class_0"
    assert "head.classifier.weight" in caplog.text
    assert zoo_seg.from_pretrained("org/mine", num_classes=7).num_classes == 7
    small(output_stride=8).push_to_hub("org/eight")  # the same tensors
    with pytest.raises(CheckpointError, match=r"output stride 8, expected fcn .*, output stride 16.*from_pretrained"):
        zoo_seg.create_model("toy_r50", "hf://org/eight")


def test_values_without_a_description(hub: Hub, zoo: Zoo, pushed: Repo, model: SegmentationModel) -> None:
    """A file of a repository, and a repository of nothing but `model.safetensors`."""
    values = pushed.files()["model.safetensors"]
    hub.repos["org/bare"] = repo = Repo()
    repo.commit({"model.safetensors": values})
    repo.commit({"sub.safetensors": values}, "v1")
    for link in ("hf://org/bare", "hf://org/bare@v1/sub.safetensors"):
        loaded = zoo_seg.create_model("toy_r50", link)
        assert loaded.classes == ("class_0", "class_1", "class_2")
        assert torch.equal(loaded.state_dict()["head.classifier.bias"], model.state_dict()["head.classifier.bias"])
    with pytest.raises(CheckpointError, match=r"org/bare has no config.json.*pretrained='hf://org/bare/FILE'"):
        zoo_seg.from_pretrained("org/bare")


# --- refusals -----------------------------------------------------------------------------------

LOG_IN = r"log in \(hf auth login, or HF_TOKEN\)$"
READING = {
    "wrong revision": ("writer", "hf://org/mine@nope", "org/mine has no revision 'nope'; .*/org/mine/tree/main lists"),
    "wrong commit": ("writer", f"hf://org/mine@{'0' * 40}", "org/mine has no revision '0000"),
    "no repository": ("writer", "hf://org/none", f"no repository org/none .*with the token in use; .*{LOG_IN}"),
    "a mistyped path": ("", "runs/mine", "there is no folder 'runs/mine', and .* has no repository runs/mine"),
    "private": ("", "hf://you/secret", f"no repository you/secret .*without a login; check the name, or {LOG_IN}"),
    "not a member": ("writer", "hf://you/secret", "no repository you/secret that can be read with the token in use"),
    "gated, a stranger": ("", "hf://you/gated", f"/you/gated is open to those who accept its terms.*{LOG_IN}"),
    "gated, not accepted": ("writer", "hf://you/gated", "read and accept them there"),
    "a bad token": ("bad", "hf://org/mine", "does not accept the token in use; make a new one at .*/settings/tokens"),
    "another library's": ("writer", "hf://org/other", "org/other is not a network .* config.json:1: .*hf://org/other/"),
    "without values": ("writer", "hf://org/half", "has a config.json, but no model.safetensors"),
}


@pytest.mark.parametrize(("token", "name", "message"), READING.values(), ids=READING)
def test_what_cannot_be_read(
    hub: Hub, pushed: Repo, monkeypatch: pytest.MonkeyPatch, token: str, name: str, message: str
) -> None:
    for path, repo in {"you/secret": Repo(private=True), "you/gated": Repo(gated=True)}.items():
        hub.repos[path] = repo
        repo.commit(pushed.files())
    hub.repos["org/other"], hub.repos["org/half"] = Repo(), Repo()
    hub.repos["org/other"].commit({"config.json": b'{"model_type": "segformer"}', "model.safetensors": b"-"})
    hub.repos["org/half"].commit({"config.json": pushed.files()["config.json"]})
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises((DownloadError, CheckpointError), match=message) as refusal:
        zoo_seg.from_pretrained(name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("link", "message"),
    [("hf://org/mine/none.pth", "org/mine has no such file"), ("hf://org/mine@no/w.pth", "has no revision 'no'")],
)
def test_a_file_that_cannot_be_read(hub: Hub, pushed: Repo, link: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        zoo_seg.create_model("fcn_r50_os8", link)


WRITING = {
    "nobody": ("", "org/mine", f"does not know who you are, .*{LOG_IN}"),
    "a bad token": ("bad", "org/mine", "does not accept the token in use"),
    "a reader": ("reader", "org/mine", f"may not write to org/mine; make one with write access to org .*{LOG_IN}"),
    "another's": ("writer", "you/mine", "may not write to you/mine; make one with write access to you"),
}


@pytest.mark.parametrize(("token", "name", "message"), WRITING.values(), ids=WRITING)
def test_what_cannot_be_written(
    hub: Hub,
    pushed: Repo,
    model: SegmentationModel,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    name: str,
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PushError, match=message) as refusal:
        model.push_to_hub(name)
    assert "\n" not in str(refusal.value)
    assert len(pushed.commits) == 2


@pytest.mark.parametrize("name", ["mine", "org/mine/file", "https://huggingface.co/org/mine", "../mine", "org/..", ""])
def test_what_is_no_name(hub: Hub, model: SegmentationModel, name: str) -> None:
    with pytest.raises(OptionError, match="expected 'org/repo'"):
        model.push_to_hub(name)
    with pytest.raises(CheckpointError):
        zoo_seg.from_pretrained(name)
    assert hub.asked == []


def test_a_folder_comes_before_a_repository(
    hub: Hub, model: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("org/mine")
    assert_same(model, zoo_seg.from_pretrained("org/mine"))
    with pytest.raises(OptionError, match="revision 'v1' goes with a repository"):
        zoo_seg.from_pretrained("org/mine", revision="v1")
    with pytest.raises(CheckpointError, match="there is no folder"):
        zoo_seg.from_pretrained(Path("org/none"))
    assert hub.asked == []


# --- where to -----------------------------------------------------------------------------------


def test_private(hub: Hub, pushed: Repo, model: SegmentationModel) -> None:
    model.push_to_hub("org/secret", private=True)
    assert hub.repos["org/secret"].private
    model.push_to_hub("org/secret", private=True)
    with pytest.raises(PushError, match="org/mine exists and is public; make it private in its settings"):
        model.push_to_hub("org/mine", private=True)
    assert len(pushed.commits) == 2


def test_a_branch_is_made_and_a_pull_request_opened(hub: Hub, pushed: Repo, model: SegmentationModel) -> None:
    other = small()
    assert "/commit/" in other.push_to_hub("org/mine", revision="next")
    assert 'from_pretrained("org/mine@next")' in pushed.files("next")["README.md"].decode()
    assert other.push_to_hub("org/mine", create_pr=True) == f"{hub.url}/org/mine/discussions/1"
    assert_same(other, zoo_seg.from_pretrained("org/mine@next"))
    assert_same(other, zoo_seg.from_pretrained("org/mine", revision="refs/pr/1"))
    assert_same(model, zoo_seg.from_pretrained("org/mine"))


def test_a_network_put_together_by_hand_is_refused(hub: Hub, model: SegmentationModel) -> None:
    by_hand = SegmentationModel(model.network, ModelInfo(classes=CLASSES, palette=PALETTE))
    with pytest.raises(OptionError, match="make it with build_model or create_model"):
        by_hand.push_to_hub("org/mine")
    assert hub.asked == []


# --- a stranger's repository --------------------------------------------------------------------


def hostile(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(config: bytes) -> bytes:
        raw = json.loads(config)
        change(raw)
        return json.dumps(raw).encode()

    return changed


CONFIGS: dict[str, Callable[[bytes], bytes]] = {
    "a backbone elsewhere": hostile(lambda raw: raw["architecture"].update(backbone="hf-hub:org/resnet18")),
    "a backbone on the disk": hostile(lambda raw: raw["architecture"].update(backbone="local-dir:/tmp/x")),
    "a family by import": hostile(lambda raw: raw["architecture"].update(family="os.system")),
    "channels out of nothing": hostile(lambda raw: raw.update(in_chans=10**9)),
    "classes that are not there": hostile(lambda raw: raw.update(classes=["a"] * 9, palette=[[0, 0, 0]] * 9)),
    "colours out of range": hostile(lambda raw: raw.update(palette=[[0, 0, 999]] * 3)),
    "a further key": hostile(lambda raw: raw.update(auto_map="evil.py")),
    "no JSON": lambda config: b"\x80\x02cos\nsystem\n",
    "nested": lambda config: b"[" * 100_000,
    "huge": lambda config: config + b" " * huggingface.MAX_CONFIG,
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_a_hostile_config_is_refused(hub: Hub, pushed: Repo, change: Callable[[bytes], bytes]) -> None:
    pushed.commit({"config.json": change(pushed.files()["config.json"])})
    with pytest.raises(ZooSegError):
        zoo_seg.from_pretrained("org/mine")
    with pytest.raises(ZooSegError):
        zoo_seg.create_model("fcn_r50_os8", "hf://org/mine")
    asked = {path.split("/")[1] for _, path in hub.asked}
    assert asked <= {"org", "stored"}
    assert not any("resnet18" in path for _, path in hub.asked)


def test_a_pickle_under_another_name_runs_nothing(hub: Hub, pushed: Repo, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Evil()}, tmp_path / "evil")
    pushed.commit({"model.safetensors": (tmp_path / "evil").read_bytes()})
    with pytest.raises(CheckpointError):
        zoo_seg.from_pretrained("org/mine")
    assert not (tmp_path / "ran").exists()


# --- cards --------------------------------------------------------------------------------------


def card_of(repo: Repo) -> ModelCard:
    return ModelCard(repo.files()["README.md"].decode())


def test_the_card_of_published_weights(hub: Hub, zoo: Zoo) -> None:
    zoo_seg.create_model("toy_r50", "toys").push_to_hub("org/toys")
    card = card_of(hub.repos["org/toys"])
    assert (card.data.library_name, card.data.pipeline_tag) == ("zoo_seg", "image-segmentation")
    assert (card.data.license, card.data.license_name) == ("other", "not-stated-by-the-publisher")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("mean_iou", 12.5, "Toys")
    assert (result.dataset_split, result.metric_args) == ("val", {"mode": "whole", "scales": [1.0], "flip": False})
    assert "| mIoU | 12.50 % | Toys, val | whole images, scale 1, no flip | zoo_seg |" in card.text
    assert "The values are those of `toy_r50.toys_me`" in card.text
    assert "not trained any further" in card.text
    assert "crop 48x64" in card.text
    assert "* code: MIT" in card.text
    assert "* weights: not stated" in card.text
    again = zoo_seg.from_pretrained("org/toys")
    again.push_to_hub("org/copy")
    copy = card_of(hub.repos["org/copy"]).text.replace("org/copy", "org/toys")
    assert copy.partition("<!--")[0] == card.text.partition("<!--")[0]


def test_a_stated_licence_is_the_repository_s(hub: Hub, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json.loads(zoo.manifest.read_text(encoding="utf-8"))
    raw["sources"]["me"]["licence_weights"] = "Apache-2.0"
    raw["datasets"]["toys"]["licence"] = "research only"
    own = zoo.mirror.parent / "licences.json"
    own.write_text(json.dumps(raw), encoding="utf-8")
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(own))
    zoo_seg.create_model("toy_r50", "toys").push_to_hub("org/toys")
    card = card_of(hub.repos["org/toys"])
    assert card.data.license == "apache-2.0"
    assert "* terms of the data: research only" in card.text


def test_the_card_of_a_trained_network(hub: Hub, model: SegmentationModel, tmp_path: Path) -> None:
    metric = Metric("mIoU", 61.234, "val", TestOptions(), "reproduced")
    model.save_pretrained(tmp_path, metrics=[metric], started_from="hf://org/base@v1", dataset="fields")
    zoo_seg.from_pretrained(tmp_path).push_to_hub("org/mine")
    card = card_of(hub.repos["org/mine"])
    assert card.data.base_model == "org/base"
    assert card.data.license is None
    assert [(each.metric_value, each.dataset_type) for each in card.data.eval_results] == [(61.23, "fields")]
    assert "Started from `hf://org/base@v1`." in card.text
    assert "for their author to state" in card.text


def test_what_was_started_from_keeps_its_licences(zoo: Zoo, model: SegmentationModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, started_from="toy_r50.toys_me")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Training started from `toy_r50.toys_me`, for which hold:" in text
    assert "* code: MIT" in text


def test_numbers_do_not_outlive_the_values(zoo: Zoo, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = zoo_seg.create_model("toy_r50", "toys")
    model.to(torch.float64).to(torch.float32).save_pretrained(tmp_path / "same")
    assert zoo_seg.from_pretrained(tmp_path / "same").metrics == model.metrics != ()
    model(X).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    model.save_pretrained(tmp_path / "trained")
    assert "the weights have changed" in caplog.text
    trained = zoo_seg.from_pretrained(tmp_path / "trained")
    assert trained.metrics == ()
    assert trained.info.started_from == "toy_r50.toys_me"
    text = (tmp_path / "trained" / "README.md").read_text(encoding="utf-8")
    assert "Nothing has been measured" in text
    assert "not trained any further" not in text
    zoo_seg.create_model("toy_r50", "toys", num_classes=7).save_pretrained(tmp_path / "seven")
    assert zoo_seg.from_pretrained(tmp_path / "seven").metrics == ()


def test_a_folder_says_the_same_when_it_is_saved_again(zoo: Zoo, tmp_path: Path) -> None:
    zoo_seg.create_model("toy_r50", "toys").save_pretrained(tmp_path / "one")
    zoo_seg.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for name in ("config.json", "README.md", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_markup_in_names_stays_text(hub: Hub) -> None:
    names = ("<script>x</script>", "a | b\n---\nlicense: mit", "[c](http://x.test)")
    small(classes=names).push_to_hub("org/mine")
    card = card_of(hub.repos["org/mine"])
    assert card.data.license is None
    assert "<script>" not in card.text.replace(r"\<script", "")
    assert r"1 a \| b --- license: mit, 2 \[c\](http://x.test)." in card.text


def test_an_overlay_is_shown_where_one_makes_sense(hub: Hub, model: SegmentationModel, tmp_path: Path) -> None:
    model.push_to_hub("org/fields")
    assert "overlay.jpg" not in hub.repos["org/fields"].files()
    small(classes=("Road", "b", "c"), palette=PALETTE).push_to_hub("org/street")  # the drawn one
    Image.new("RGB", (2000, 100), "green").save(tmp_path / "field.png")
    model.push_to_hub("org/own", example=tmp_path / "field.png")
    for name in ("org/street", "org/own"):
        files = hub.repos[name].files()
        assert b"](overlay.jpg)" in files["README.md"]
        (tmp_path / "overlay.jpg").write_bytes(files["overlay.jpg"])
        with Image.open(tmp_path / "overlay.jpg") as overlay:
            assert 500 < max(overlay.size) <= 1024
    hub.asked.clear()
    with pytest.raises(ZooSegError, match="no such file"):
        model.push_to_hub("org/new", example=tmp_path / "none.png")
    assert hub.asked == []


# --- the command line ---------------------------------------------------------------------------


@pytest.fixture
def folder(model: SegmentationModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "state.pt").write_bytes(b"not for others")
    return tmp_path / "run"


def test_push_a_folder(hub: Hub, folder: Path, model: SegmentationModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder), "org/mine", "--private", "--revision", "v1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{hub.url}/org/mine/commit/")
    assert 'zoo_seg.from_pretrained("org/mine@v1")' in out
    repo = hub.repos["org/mine"]
    assert repo.private
    assert set(repo.files("v1")) == FILES
    assert repo.files("v1")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert_same(model, zoo_seg.from_pretrained("org/mine@v1"))


def test_a_card_written_by_hand_goes_along(hub: Hub, folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8") + "\nDrawn by hand.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    assert main(["push", str(folder), "org/mine"]) == 0
    assert hub.repos["org/mine"].files()["README.md"].decode() == text
    assert set(hub.repos["org/mine"].files()) == FILES


def test_a_card_of_an_older_version_is_made_anew(hub: Hub, folder: Path) -> None:
    old = cards._seal("# Old\n")
    (folder / "README.md").write_text(f"# Old\n\n{old}\n", encoding="utf-8")
    assert main(["push", str(folder), "org/mine"]) == 0
    assert 'from_pretrained("org/mine")' in hub.repos["org/mine"].files()["README.md"].decode()


@pytest.mark.slow
def test_push_published_weights_and_use_them(
    hub: Hub, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Converted once and pushed; elsewhere neither a .pth nor a manifest is needed, nor a --model."""
    assert main(["push", "toy_r50.toys", "org/toys"]) == 0
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    arguments = ["predict", str(tmp_path / "red.png"), "--device", "cpu", "--no-overlay"]
    assert main([*arguments, "--weights", "toy_r50.toys", "--out", str(here)]) == 0
    result = subprocess.run(
        [sys.executable, "-m", "zoo_seg", *arguments, "--weights", "hf://org/toys", "--out", str(elsewhere)],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ZOO_SEG_")},
            "ZOO_SEG_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "",
            "HF_HOME": str(tmp_path / "hf"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (mask,), (expected,) = elsewhere.rglob("*_mask.png"), here.rglob("*_mask.png")
    with Image.open(mask) as found, Image.open(expected) as here:  # their marks name other weights
        assert found.tobytes() == here.tobytes()
    assert not list((tmp_path / "home").rglob("*.pth"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no/such/folder", "org/mine"], 2, "needs a --model"),
        (["toy_r50.toys", "mine"], 2, "expected 'org/repo'"),
        (["toy_r50.none", "org/mine"], 2, "has no weights 'none'"),
        (["toy_r50.toys", "you/mine"], 1, "may not write to you/mine"),
        (["{empty}", "org/mine"], 1, "holds nothing; expected config.json"),
        (["toy_r50.toys"], 2, "ORG/REPO"),
    ],
)
def test_push_says_in_one_line_what_is_wrong(
    hub: Hub,
    zoo: Zoo,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    try:
        found = main(["push", *(each.replace("{empty}", str(tmp_path / "empty")) for each in arguments)])
    except SystemExit as leaving:  # argparse
        found = int(str(leaving.code))
    err = capsys.readouterr().err
    assert (found, message in err) == (code, True), err
    assert len(err.strip().splitlines()) <= 2
    assert hub.repos == {}
