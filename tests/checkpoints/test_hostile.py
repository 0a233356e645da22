"""Files that want to do harm: nothing runs, nothing is written, no memory is taken that the file does not have.

The rows of weight files go into `docs/reliability.md`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, toy_manifest
from helpers.hostile import NAME, beside, copied_states, headers, legacy, pickles, tensor, zipped
from helpers.reliability import Reliability
from safetensors.torch import load_file, save_file

import zoo_seg
from zoo_seg.checkpoints.convert import convert
from zoo_seg.checkpoints.opening import check_finite, open_checkpoint
from zoo_seg.config import read_config
from zoo_seg.errors import CheckpointError, ManifestError, UnknownNameError, ZooSegError
from zoo_seg.manifest import get_architecture, published_manifest, read_manifest
from zoo_seg.pretrained import load_checkpoint

ALLOWANCE = 256 << 20
"""Bytes of memory beyond the file's own size."""
SECONDS = 10.0
"""Of a processor's time, for each file; the slowest take 2."""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    zoo_seg.build_model("fcn", "mobilenetv3_small_050", 3, channels=8).save_pretrained(folder)
    return folder


# --- weight files -------------------------------------------------------------------------------

HOSTILE = {**pickles(), **headers()}

OPEN_ALL = """
import json, re, resource, sys, time
from pathlib import Path
from zoo_seg.manifest import get_architecture
from zoo_seg.pretrained import _open

_, architecture = get_architecture("fcn_resnet50_os8")

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

results = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, began = status("VmHWM"), time.process_time()
    limit = status("VmSize") + path.stat().st_size + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        said = f"opened: {_open(path, architecture).tensors}"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    results[path.name] = said, status("VmHWM") - before, time.process_time() - began
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int, float]]:
    """What became of each hostile file in one process of limited memory: (what it said, bytes, seconds)."""
    files, work, elsewhere = (tmp_path_factory.mktemp(name) for name in ("hostile", "work", "elsewhere"))
    for name, (content, _) in HOSTILE.items():
        (files / name).write_bytes(content)
    before = sorted(files.iterdir())
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPEN_ALL, str(files), str(ALLOWANCE)],
        cwd=work,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "TORCHINDUCTOR_CACHE_DIR": str(elsewhere),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (sorted(files.iterdir()), list(work.iterdir())) == (before, []), "something was written"
    found: dict[str, tuple[str, int, float]] = json.loads(result.stdout)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by /proc")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_little_memory(
    name: str, outcomes: dict[str, tuple[str, int, float]], reliability: Reliability
) -> None:
    content, says = HOSTILE[name]
    said, memory, seconds = outcomes[name]
    assert said.startswith("CheckpointError: ")
    assert name in said
    assert re.search(says, said), said
    assert memory <= len(content) + ALLOWANCE
    assert seconds < SECONDS
    assert len(said) < 1000
    said = re.sub(r"^CheckpointError: \S*/|: it should.*", "", said)
    reliability.row("hostile", name, "refused", figures=(f"{len(content):,}", f"{memory >> 20}", said))


@pytest.mark.parametrize("zip_", [True, False], ids=["zip", "legacy"])
def test_what_training_code_saves_around_the_weights_is_passed_over(zip_: bool, tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())  # not contiguous
    state = {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(parameter)}
    group = {"lr": 0.1, "betas": (0.9, 0.999), "amsgrad": False, "foreach": None, "params": [0]}
    flat = torch.arange(10.0)
    content = {
        "epoch": 3,
        "best": 71.5,
        "meta": {"CLASSES": ("a", "b"), "config": "x" * 50_000, "seed": None, "dtype": torch.float32, "ü": b"\x00\xff"},
        "optimizer": {"state": {0: state}, "param_groups": [group]},
        "scheduler": {"milestones": Counter([3, 5, 5]), "gamma": 0.1, "_get_lr_called_within_step": False},
        "rng": torch.get_rng_state(),
        "size": flat.shape,
        "device": torch.device("cpu"),
        "state_dict": OrderedDict(a=parameter, b=flat[:4], c=flat[4:], half=torch.ones(2, dtype=torch.bfloat16)),
    }
    content["state_dict"]._metadata = {"": {"version": 1}}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_)
    tensors, _ = open_checkpoint(tmp_path / "a.pth")
    assert list(tensors) == ["a", "b", "c", "half"]
    assert all(torch.equal(tensors[name], value) for name, value in content["state_dict"].items())


@pytest.mark.parametrize("zip_", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "value",
    [
        # one long text, given to many calls that each could make bytes of it
        b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"r\xf0\0\0\0"
        b"(" + b"c_codecs\nencode\nj\xf0\0\0\0X\x06\0\0\0latin1\x86R" * 10_000 + b"t\x86",
        copied_states(20_000, 20_000),
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x06" + bytes(5) + b"\x01\x85X\1\0\0\0b\x87R",
    ],
    ids=["text", "state", "numpy"],
)
def test_what_lies_beside_the_weights_takes_no_memory(value: bytes, zip_: bool, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(zipped(beside(value)) if zip_ else legacy(beside(value, legacy=True)))
    tracemalloc.start()
    try:
        tensors, _ = open_checkpoint(tmp_path / "a.pth")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tensors[NAME].shape == (4, 4)
    assert not tensors[NAME].any()
    assert peak < 64 << 20


def test_one_dictionary_is_not_copied_without_end(tmp_path: Path) -> None:
    items = b"](" + b"X\x01\0\0\0aN\x86" * 1000 + b"er\xf0\0\0\0"
    copies = b"(" + items + b"ccollections\nOrderedDict\nj\xf0\0\0\0\x85R" * 1000 + b"t"
    (tmp_path / "a.pth").write_bytes(zipped(beside(copies)))
    with pytest.raises(CheckpointError, match="takes more than 500000 steps"):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("numpy", ["numpy1", "numpy2"])
def test_a_file_of_mmengine(numpy: str) -> None:
    """Its runner's own, with logs (`HistoryBuffer`) and a score of numpy's: `make_mmengine_checkpoint.py`."""
    path = REPOSITORY / "tests" / "fixtures" / f"mmengine_{numpy}.pth"
    assert b"HistoryBuffer" in path.read_bytes()
    assert b"multiarray\nscalar" in path.read_bytes()
    tensors, _ = open_checkpoint(path)
    assert list(tensors) == ["conv.weight", "conv.bias"]
    assert torch.equal(tensors["conv.weight"], torch.arange(6.0).reshape(3, 2, 1, 1))
    assert torch.equal(tensors["conv.bias"], torch.tensor([-1.0, 0.0, 1.0]))
    assert "mmengine" not in sys.modules


def test_arrays_in_the_place_of_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": np.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds b \(numpy._core.multiarray._reconstruct\) among 2 entries"):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zip_", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.ones(2, 3).to_sparse(), r"a sparse tensor; save tensor.to_dense\(\)"),
        (lambda: torch.ones(2, 3).to_sparse_csr(), r"a sparse tensor; save tensor.to_dense\(\)"),
        (lambda: torch.ones(2, 3, device="meta"), "a tensor of the meta device, without values"),
        (lambda: torch._neg_view(torch.ones(2)), "another one's negative"),
    ],
    ids=["sparse", "sparse rows", "meta", "negative"],
)
def test_tensors_of_other_kinds(make: Callable[[], torch.Tensor], says: str, zip_: bool, tmp_path: Path) -> None:
    torch.save({"a": make()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zip_", [True, False], ids=["zip", "legacy"])
def test_every_view_is_what_torch_reads(zip_: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0)
    state = {
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "rows": base[:12].reshape(3, 4)[:, 1:3],
        "turned": base[12:].reshape(2, 2, 3).permute(2, 0, 1),
        "half": torch.randn(5).half(),
        "brain": torch.randn(3).bfloat16(),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(7),
    }
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_)
    tensors, _ = open_checkpoint(tmp_path / "a.pth")
    expected = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(tensors) == list(expected)
    for name, found in tensors.items():
        assert found.dtype == expected[name].dtype
        assert found.stride() == expected[name].stride()
        assert torch.equal(found, expected[name])


def test_numbers_of_a_big_endian_machine(tmp_path: Path) -> None:
    content = zipped({NAME: tensor(16, (4, 4), (4, 1))}).replace(b"little", b"big\0\0\0")
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="not little-endian"):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_by_name(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"head.a": torch.ones(2, 3), "head.b": torch.ones(5, 7, dtype=dtype), "head.n": torch.tensor(3)}
    check_finite(tmp_path, tensors)
    tensors["head.b"][3, 2:4] = value
    with pytest.raises(CheckpointError, match=r"2 of the 35 values of 'head.b' are NaN or infinite"):
        check_finite(tmp_path, tensors)


def test_large_values_are_no_infinity(tmp_path: Path) -> None:
    check_finite(tmp_path, {"a": torch.full((100,), 3e38), "b": torch.full((100,), 6e4, dtype=torch.float16)})


def test_a_network_with_nan_is_not_built(tmp_path: Path) -> None:
    tensors = zoo_seg.build_model("fcn", "mobilenetv3_small_050", 3, channels=8).state_dict()
    tensors["backbone.bn1.running_var"][0] = float("nan")
    save_file(tensors, tmp_path / "diverged.safetensors")
    with pytest.raises(CheckpointError, match=r"diverged.safetensors: 1 of .* 'backbone.bn1.running_var' are NaN"):
        zoo_seg.create_model("fcn_resnet50_os8", tmp_path / "diverged.safetensors")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"head.classifier.weight": torch.ones(70_000, 1, 1, 1)}, "has 70000 classes; a mask can hold 1 to 65536"),
        ({"head.classifier.weight": torch.ones(3)}, "does not fit the network in 352 tensors"),
        (
            {"head.classifier.weight": torch.ones(3, 4, 1, 1), "aux_head.classifier.weight": torch.ones(3)},
            "does not fit the network in 351 tensors",
        ),
        ({"module.head.a": torch.ones(1), "head.a": torch.ones(1)}, "are both 'head.a'"),
        ({"head.a\x1b[2J": torch.ones(1)}, r"has the name 'head.a\\x1b\[2J'"),
        ({"head." + "a" * 300: torch.ones(1)}, "expected at most 200 letters"),
    ],
)
def test_tensors_that_are_no_network_s(tensors: dict[str, torch.Tensor], says: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=says):
        zoo_seg.create_model("fcn_resnet50_os8", tmp_path / "a.safetensors")


def test_whole_numbers_are_no_weights(network: Path, tmp_path: Path) -> None:
    tensors = dict(load_file(network / "model.safetensors"))
    tensors["head.classifier.weight"] = tensors["head.classifier.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((network / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"head.classifier.weight +3x8x1x1 of integers +3x8x1x1$"):
        zoo_seg.from_pretrained(tmp_path)
    double = {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}
    double["head.classifier.weight"] = tensors["head.classifier.weight"].double()
    save_file(double, tmp_path / "model.safetensors")
    model = zoo_seg.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_file_may_be_saved_over_while_its_tensors_are_in_use(name: str, tmp_path: Path) -> None:
    """Mapped, it would end the process (SIGBUS), and the weights with it."""
    path, save = tmp_path / name, save_file if name.endswith(".safetensors") else torch.save
    tensors = {"head.classifier.weight": torch.randn(3, 8, 1, 1), "head.classifier.bias": torch.randn(3)}
    save(tensors, path)
    held = load_checkpoint("fcn_resnet50_os8", path).tensors
    path.write_bytes(b"")
    save(dict(held), path)
    saved, _ = open_checkpoint(path)
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("shape", [(), (2,), (2, 2), (2, 2, 1, 1), (9, 2, 1, 1)])
def test_shapes_that_confuse_the_pyramid(shape: tuple[int, ...]) -> None:
    tensors = {
        "ppm_net.branches.0.1.weight": torch.ones(shape),
        "ppm_net.bottleneck.0.weight": torch.ones(2, 8, 3, 3),
    }
    renamed = convert(tensors, get_architecture("pspnet_resnet50_os8")[1]).tensors
    assert "head.bottleneck.weight" in renamed  # what does not fit is told when the network is filled


# --- names of backbones -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:org/model",
        "hf_hub:org/model",
        "hf-hub:timm/resnet50.a1_in1k",
        "timm/resnet50.a1_in1k",
        "local-dir:/tmp/model",
        "resnet50.hf-hub:org/model",
        "../resnet50",
        "resnet50/../../x",
        "https://host/resnet50",
        "resnet50\n",
        "",
    ],
)
def test_a_backbone_is_a_name_and_no_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *arguments, **options: pytest.fail("timm was asked"))
    with pytest.raises(UnknownNameError, match="there is no backbone"):
        zoo_seg.build_model("fcn", name, 3)


# --- config.json --------------------------------------------------------------------------------


def change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw.update(changes)


def inside(key: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw[key].update(changes)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (change(auto_map={"AutoModel": "evil.Model"}), "auto_map: unknown key"),
        (change(trust_remote_code=True), "trust_remote_code: unknown key"),
        (change(architectures=["Evil"]), "architectures: unknown key"),
        (change(_name_or_path="/etc"), "_name_or_path: unknown key"),
        (inside("architecture", pretrained=True), "architecture.pretrained: unknown key"),
        (inside("architecture", backbone_kwargs={"pretrained": True}), "backbone_kwargs: unknown key"),
        (inside("architecture", backbone="hf-hub:org/evil"), "there is no backbone 'hf-hub:org/evil'"),
        (inside("architecture", backbone="local-dir:/tmp"), "there is no backbone"),
        (inside("architecture", backbone="../../evil"), "there is no backbone"),
        (inside("architecture", backbone=["resnet50"]), "expected a string"),
        (inside("architecture", family="os.system"), "there is no family"),
        (inside("architecture", output_stride=0), "output_stride is 0"),
        (inside("architecture", output_stride=-8), "output_stride is -8"),
        (inside("architecture", output_stride=10**12), "output stride"),
        (change(in_chans=10**9), "backbone.conv_stem.weight  16x3x3x3     16x1000000000x3x3"),
        (change(in_chans=10**18), "cannot give"),
        (change(in_chans=0), "in_chans is 0"),
        (change(classes=["a"] * 5, palette=[[0, 0, 0]] * 5), "has 3 classes, the config beside it 5"),
        (change(classes=[], palette=[]), "0 classes"),
        (change(palette=[[0, 0, 256]] * 3), "integers from 0 to 255"),
        (change(palette=[[0, 0, -1]] * 3), "integers from 0 to 255"),
        (change(classes=["a", "b", "\x1b]0;title\x07"]), "text without control characters"),
        (inside("preprocess", resize={"short": 10**9, "long": 10**9}), "0 < short <= long <= 32768"),
        (inside("preprocess", std=[0, 1, 1]), "three positive numbers"),
        (change(schema_version=99), "schema_version: found 99"),
    ],
)
def test_a_config_that_asks_for_more_than_a_network(
    edit: Callable[[dict[str, Any]], None], says: str, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.loads((network / "config.json").read_text(encoding="utf-8"))
    edit(raw)
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((network / "model.safetensors").read_bytes())
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: pytest.fail("the network was asked"))
    with pytest.raises(ZooSegError) as caught:
        zoo_seg.from_pretrained(tmp_path)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1000


# --- manifests ----------------------------------------------------------------------------------


def manifest_with(url: Any = None, **file: Any) -> bytes:
    raw = toy_manifest()
    first = raw["weights"]["toy_r50.toys_me"]["files"][0]
    first.update({"url": url} if url is not None else {}, **file)
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (manifest_with("https://zoo.invalid/../../etc/passwd"), "leads upwards"),
        (manifest_with("https://zoo.invalid/%2e%2e/%2E%2E/x.pth"), "leads upwards"),
        (manifest_with("hf://org/repo/..%2f..%2fx.pth"), "plain file name"),
        (manifest_with("hf://org/repo/..%5c..%5cx/a.pth"), "leads upwards"),
        (manifest_with("https://zoo.invalid/.hidden"), "plain file name"),
        (manifest_with("https://zoo.invalid/a b.pth"), "plain file name"),
        (manifest_with("/etc/passwd"), "expected an https://"),
        (manifest_with("ftp://zoo.invalid/x.pth"), "expected an https://"),
        (manifest_with("http://zoo.invalid/x.pth"), "expected an https://"),
        (manifest_with("https://user:secret@zoo.invalid/x.pth"), "'https://zoo.invalid/x.pth' holds credentials"),
        (manifest_with("https://zoo.invalid/x.pth?signature=secret"), "holds credentials or a query"),
        (manifest_with("https://[::1/x.pth"), "IPv6"),
        (manifest_with(mirrors=["https://zoo.invalid/../x.pth"]), "leads upwards"),
        (manifest_with(tensors_sha256="abc"), "tensors_sha256 is 'abc', expected 64"),
        (manifest_with(run="code"), "unknown key"),
        (manifest_with(size=1e400), "not valid JSON"),
        (manifest_with(size=float("nan")), "NaN is not valid JSON"),
        (b'{"schema_version": 1, "a": -Infinity}', "-Infinity is not valid JSON"),
        (manifest_with(size=10**25), "a number of 26 digits"),
        (b'{"schema_version": ' + b"1" * 10_000 + b"}", "a number of 10000 digits"),
        (manifest_with().replace(b'"value": 12.5', b'"value": 1e999'), "a number that is too large"),
        (manifest_with().replace(b'"lr": 0.01', b'"lr": 1e999'), "a number that is too large"),
        (manifest_with().replace(b'"scales": [1]', b'"scales": [1000000]'), "factors of the image up to 16"),
        (manifest_with().replace(b'"scales": [1]', b'"scales": []'), "factors of the image"),
        (manifest_with().replace(b'"crop": [48, 64]', b'"crop": [0, 64]'), "two sides of 1 to 32768"),
        (manifest_with().replace(b'"ground"', b'"\\ud800"'), 'found "\\ud800", expected text'),
        (manifest_with().replace(b'"ground"', b'"\\u001b[31m"'), "expected text without control characters"),
        (b'{"schema_version": 1, "' + b"x" * 100_000 + b'": 1}', "unknown key"),
        (b'{"schema_version": 1, "\\ud800": 1}', "unknown key"),
        (b'{"a": 1, "a": 2, "schema_version": 1}', "the key 'a' stands twice"),
        (b"[" * 2_000_000, "nested too deeply"),
        (b'{"a":' * 300_000, "nested too deeply"),
        (b'["' + b"x" * 4_000_000 + b'"]', "expected an object"),
        (b" " * (100 << 20), "more than 4 MiB; expected a manifest"),
        (b'{"schema_version": 1}\xff', "UTF-8"),
        (b"PK\x03\x04" + bytes(100), "not valid JSON"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_manifest_that_wants_to_do_harm(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    began = time.process_time()
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, read_manifest(published_manifest())).check()
    message = str(caught.value)
    assert says in message
    assert message.startswith(str(path))
    assert len(message) < 1200
    assert message.isprintable()
    assert "secret" not in message
    assert time.process_time() - began < SECONDS


def test_an_endless_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero on this system")
    monkeypatch.setenv("ZOO_SEG_MANIFEST", "/dev/zero")
    with pytest.raises(ManifestError, match="more than 4 MiB"):
        zoo_seg.list_weights()


def test_files_of_a_record_hold_the_same_tensors(tmp_path: Path) -> None:
    raw = toy_manifest()
    files = raw["weights"]["toy_r50.toys_me"]["files"]
    files[0]["tensors_sha256"] = "a" * 64
    files.append({"url": "https://zoo.invalid/copy.safetensors", "tensors_sha256": "b" * 64})
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    with pytest.raises(ManifestError, match="different tensors_sha256"):
        read_manifest(tmp_path / "mine.json", read_manifest(published_manifest())).check()


def test_a_config_of_100_megabytes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"[" + b"0," * (50 << 20) + b"0]")
    with pytest.raises(ManifestError, match="more than 4 MiB"):
        read_config(tmp_path)
