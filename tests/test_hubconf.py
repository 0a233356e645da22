"""torch.hub on a checkout and on the zip that GitHub makes of one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from helpers.reference import checkpoint, key_list, keys

import zoo_seg
from zoo_seg.manifest import aliases, get_model

MODELS = {name: [name, *aliases(name)] for name in zoo_seg.list_models()}
NAMES = sorted(name for names in MODELS.values() for name in names)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What GitHub sends for a branch: one folder, no symbolic links."""
    path = tmp_path_factory.mktemp("github") / "main.zip"
    files = [REPOSITORY / name for name in ("hubconf.py", "weights_manifest.json")]
    files += sorted((REPOSITORY / "zoo_seg").rglob("*.py"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("zoo_seg-main")
        for file in files:
            archive.write(file, Path("zoo_seg-main") / file.relative_to(REPOSITORY))
    return path


@pytest.fixture
def github(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments for torch.hub, which gets the zip where it would ask GitHub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, **options: shutil.copy(archive, path))
    return {"github": "org/zoo_seg:main", "trust_repo": True, "skip_validation": True}


@pytest.mark.filterwarnings("ignore:torch.hub fetched zoo_seg")
def test_list_gives_every_name_and_nothing_else(github: dict[str, Any]) -> None:
    assert sorted(torch.hub.list(**github)) == NAMES


def test_another_zoo_seg_that_is_imported_already_is_reported(github: dict[str, Any], tmp_path: Path) -> None:
    fetched = (tmp_path / "torch" / "hub" / "org_zoo_seg_main" / "zoo_seg").resolve()
    message = rf"to {re.escape(str(fetched))}, but .* imported from {re.escape(str(REPOSITORY / 'zoo_seg'))} is used"
    with pytest.warns(UserWarning, match=message):
        torch.hub.list(**github)


@pytest.mark.filterwarnings("ignore:torch.hub fetched zoo_seg")
def test_help_says_what_the_record_says(github: dict[str, Any]) -> None:
    for model, names in MODELS.items():
        record = get_model(model)
        for name in names:
            text = torch.hub.help(model=name, **github)
            assert text.startswith(record.title)
            assert "num_classes: " in text
            stride = record.architecture.output_stride
            assert (f"output stride {stride}." in text) == bool(stride)
            assert all(each.tag in text for each in zoo_seg.list_weights(model))


def test_an_unknown_entry_point(github: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="Cannot find callable unet in hubconf"):
        torch.hub.load(str(REPOSITORY), "unet", source="local")


@pytest.mark.parametrize(
    ("name", "canonical"), [("pspnet_r50_os16", "pspnet_resnet50_os16"), ("semantic_fpn_r50", "semanticfpn_resnet50")]
)
def test_load_without_weights(name: str, canonical: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the checkout's zoo_seg is the imported one
        model = torch.hub.load(str(REPOSITORY), name, source="local", num_classes=4)
    assert isinstance(model, zoo_seg.SegmentationModel)
    assert model.training
    assert model.weights is None
    expected = zoo_seg.create_model(canonical, num_classes=4).state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in expected.items()
    }


def test_load_from_a_path(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "mine.pth", keys("mmseg", "fpn_r50_cityscapes"), layout="mmseg")
    model = torch.hub.load(str(REPOSITORY), "semantic_fpn_r50", source="local", pretrained=str(path))
    assert not model.training
    assert model.num_classes == 19
    assert model.protocol == "mmseg"
    stored = torch.load(path, weights_only=True)["state_dict"]["decode_head.conv_seg.weight"]
    assert torch.equal(model.state_dict()["head.classifier.weight"], stored)


FIRST_USE = """
import shutil, sys, torch

def download(url, path, **options):  # what stands between torch.hub and GitHub
    print(url)
    shutil.copy({archive!r}, path)

torch.hub.download_url_to_file = download
options = dict(trust_repo=True, skip_validation=True, verbose=False)
names = torch.hub.list("org/zoo_seg:main", **options)
print(len(names), sorted({{"timm", "zoo_seg.factory"}} & set(sys.modules)))
model = torch.hub.load("org/zoo_seg:main", "semanticfpn_r50", pretrained="voc", **options)
import zoo_seg, zoo_seg.manifest
print(zoo_seg.__file__)
print(zoo_seg.manifest.published_manifest())
print(model.weights.id, model.training, tuple(model.classes[:2]), model(torch.zeros(1, 3, 32, 32)).shape)
"""


@pytest.mark.slow
def test_the_zip_from_github_is_enough(archive: Path, tmp_path: Path, home: Path) -> None:
    """Listed and loaded in a fresh process, with weights from a mirror; the checkout at hand is out of sight."""
    weights = zoo_seg.get_weights("semanticfpn_r50", "voc")
    checkpoint(tmp_path / "mirror" / weights.files[0].name, keys(*key_list(weights)), layout="ssseg")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "TORCH_HOME": str(tmp_path / "torch"),
        "ZOO_SEG_MIRROR": str(tmp_path / "mirror"),
        "ZOO_SEG_OFFLINE": "1",
        "PYTHONWARNINGS": "error::UserWarning:hubconf",
    }
    result = subprocess.run(
        [sys.executable, "-c", FIRST_USE.format(archive=str(archive))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    *_, url, listed, package, manifest, model = result.stdout.splitlines()
    hub = tmp_path / "torch" / "hub" / "org_zoo_seg_main"
    assert url == "https://github.com/org/zoo_seg/zipball/main"
    assert listed == f"{len(NAMES)} []"
    assert Path(package) == hub / "zoo_seg" / "__init__.py"
    assert Path(manifest) == hub / "weights_manifest.json"
    assert model == "semanticfpn_resnet50.voc_ssseg False ('background', 'aeroplane') torch.Size([1, 21, 32, 32])"
    assert list(home.rglob("*.safetensors"))


def test_dependencies_are_those_of_the_package() -> None:
    def named(file: str) -> set[str]:
        block = re.search(r"^dependencies = \[(.*?)^\]", (REPOSITORY / file).read_text(encoding="utf-8"), re.M | re.S)
        assert block
        return {re.split("[<>=]", entry)[0] for entry in re.findall('"(.+?)"', block[1])}

    assert named("hubconf.py") - {"PIL"} == named("pyproject.toml") - {"pillow"} >= {"torch", "timm"}
