"""`predict` in OpenVINO: the class map of torch, and a graph that is made once and used for this very network alone."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zoo_seg
from zoo_seg.cli import main
from zoo_seg.errors import ExportError, MissingExtraError, OptionError
from zoo_seg.images.preprocess import normalise
from zoo_seg.inference.backends import find_backend
from zoo_seg.inference.identity import UnknownCodeError, network_sha256
from zoo_seg.inference.prepare import AsItIs
from zoo_seg.model import SegmentationModel

openvino = pytest.importorskip("openvino")
from zoo_seg.export import backend  # noqa: E402  (needs it)
from zoo_seg.export.openvino_file import core  # noqa: E402

pytestmark = pytest.mark.slow

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
CODE = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path({here!r}).parent))
import numpy as np, test_openvino as test
from zoo_seg.export import backend
backend._Kept._convert = None
np.save({out!r}, test.small().predict(test.IMAGE, resize=None, backend="openvino").mask)
"""


def small() -> SegmentationModel:
    """A network of which each class is the likeliest somewhere."""
    torch.manual_seed(0)
    model = zoo_seg.build_model("fcn", "test_resnet", 5, channels=8).eval()
    with torch.no_grad():
        model.head.classifier.weight *= 100
        model.head.classifier.bias -= model(image(model)).mean((0, 2, 3))
    return model


def image(model: SegmentationModel) -> torch.Tensor:
    return normalise(IMAGE, model.preprocess.mean, model.preprocess.std)


def expected(model: SegmentationModel) -> np.ndarray:
    with torch.no_grad():
        return model(image(model)).argmax(1)[0].numpy()


def check(model: SegmentationModel, **options: Any) -> None:
    """`predict` in OpenVINO is what `model(x)` is at this moment."""
    mask = model.predict(IMAGE, resize=None, backend="openvino", **options).mask
    assert (mask == expected(model)).mean() >= 0.999


def computes_in(model: SegmentationModel, name: str = "openvino", **options: Any) -> str:
    return type(model.predictor(backend=name, **options).network).__name__


@cache
def graphs() -> Path:
    """The cache of a process that has predicted with `small`; an export takes seconds."""
    import os
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="zoo_seg-test-"))
    before, os.environ["ZOO_SEG_HOME"] = os.environ["ZOO_SEG_HOME"], str(folder)
    try:
        check(small())
    finally:
        os.environ["ZOO_SEG_HOME"] = before
    return folder / "openvino"


@pytest.fixture
def kept(home: Path) -> Path:
    """A cache that holds the graph of `small`: its .xml."""
    shutil.copytree(graphs(), home / "openvino")
    (graph,) = (home / "openvino").glob("*/graph.xml")
    return graph


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every network that is exported from now on; that of `small` is not traced again, which takes seconds."""
    found: list[object] = []
    convert = backend._Kept._convert

    def counting(kept: Any) -> Any:
        found.append(kept)
        (graph,) = graphs().glob("*/graph.xml")
        return core().read_model(graph) if kept._folder.name == graph.parent.name else convert(kept)

    monkeypatch.setattr(backend._Kept, "_convert", counting)
    return found


# --- the graph and its cache --------------------------------------------------------------------


def test_the_class_map_is_torch_s(kept: Path, made: list[object]) -> None:
    model = small()
    assert len(np.unique(expected(model))) > 2
    check(model)
    assert computes_in(model) == "InOpenVINO"
    options: dict[str, Any] = {"mode": "slide", "crop": (64, 80), "flip": True, "scales": (0.75, 1.0), "resize": None}
    here, there = model.predict(IMAGE, **options), model.predict(IMAGE, **options, backend="openvino")
    assert (here.mask == there.mask).mean() >= 0.999
    assert not made


SIGNALS = """
import gc, signal, subprocess, sys, threading
from zoo_seg.export.openvino_file import core, openvino
ops = openvino.opset13
x = ops.parameter([1, 3, 8, 8], openvino.Type.f32)
compiled = [core().compile_model(openvino.Model([ops.relu(x)], [x]), "CPU", {})]
signal.signal(signal.SIGCHLD, lambda *_: None)  # as torch's DataLoader does

def drop():
    compiled.clear()
    gc.collect()

dropping = threading.Thread(target=drop)
dropping.start()
dropping.join()
subprocess.run([sys.executable, "-c", "pass"], check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the stack for signals is Linux's")
def test_confidence_in_openvino(kept: Path) -> None:
    model = small()
    plain = model.predict(IMAGE, resize=None, backend="openvino")
    found = model.predict(IMAGE, resize=None, backend="openvino", confidence=True)
    assert np.array_equal(found.mask, plain.mask)
    np.testing.assert_allclose(
        found.confidence, model.predict(IMAGE, resize=None, confidence=True).confidence, atol=1e-3
    )


def test_a_signal_after_the_network_is_gone_does_not_end_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", SIGNALS], timeout=120, check=False).returncode == 0


def test_bfloat16_is_as_far_from_float32_as_torch_s(kept: Path) -> None:
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(OptionError, match="no bfloat16 on this processor"):
            small().predict(IMAGE, backend="openvino", dtype="bfloat16")
        return
    model = small()
    found = model.predict(IMAGE, resize=None, backend="openvino", dtype="bfloat16")
    assert computes_in(model, dtype="bfloat16") == "InOpenVINO"
    right = expected(model)
    own = (model.predict(IMAGE, resize=None, dtype="bfloat16").mask != right).mean()
    assert (found.mask != right).mean() <= 2 * own + 1e-3


def test_another_process_takes_the_graph_from_the_cache(kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.npy"
    subprocess.run([sys.executable, "-c", CODE.format(here=__file__, out=str(out))], check=True)
    assert (np.load(out) == expected(small())).mean() >= 0.999


@pytest.mark.parametrize("name", ["graph.xml", "graph.bin"])
@pytest.mark.parametrize("damage", [b"", b"<?xml>", None], ids=["empty", "other", "gone"])
def test_a_damaged_graph_is_made_anew(kept: Path, name: str, damage: bytes | None, made: list[object]) -> None:
    path = kept.with_name(name)
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    for _ in range(2):
        check(small())
        assert len(made) == 1
    assert not [each for each in kept.parent.iterdir() if each.is_dir()]


def test_changed_values_in_the_cache_are_noticed(kept: Path, made: list[object]) -> None:
    path = kept.with_suffix(".bin")
    values = np.frombuffer(path.read_bytes(), np.float32).copy()
    values[:1000] *= -1
    path.write_bytes(values.tobytes())
    check(small())
    assert len(made) == 1


def test_a_home_that_cannot_be_written_is_done_without(home: Path, made: list[object]) -> None:
    (home / "openvino").write_text("in its place")
    check(small())
    assert len(made) == 1


def test_only_so_many_bytes_are_kept(kept: Path, made: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "KEPT", 1)
    other = kept.parent.with_name("other")
    kept.parent.rename(other)
    check(small())
    assert kept.exists()
    assert not other.exists()


# --- the network as it is now -------------------------------------------------------------------


def test_changed_weights_have_a_graph_of_their_own(kept: Path, made: list[object]) -> None:
    model = small()
    check(model)
    before = expected(model)
    model.head.classifier.weight.data.mul_(-1)
    assert (before != expected(model)).mean() > 0.5
    check(model)
    assert len(made) == 1


def twist(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.flip(1)


class Twisted(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).flip(1)


def hooked(model: SegmentationModel) -> None:
    model.head.classifier.register_forward_hook(twist)


def replaced(model: SegmentationModel) -> None:
    twisted = Twisted(model.head.classifier.in_channels, 5, 1)
    twisted.load_state_dict(model.head.classifier.state_dict())
    model.head.classifier = twisted


def patched(model: SegmentationModel) -> None:
    forward = model.head.forward
    model.head.forward = lambda features: forward(features).flip(1)


@pytest.mark.parametrize("change", [hooked, replaced, patched])
def test_code_of_the_user_s_stays_in_torch(
    change: Callable[[SegmentationModel], None], kept: Path, made: list[object]
) -> None:
    model = small()
    check(model)
    before = expected(model)
    change(model)
    assert (before != expected(model)).mean() > 0.5
    check(model)
    assert computes_in(model) != "InOpenVINO"
    assert not made


def test_a_class_that_was_patched_stays_in_torch(
    kept: Path, made: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    check(model)
    kind = type(model.head)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, features: forward(self, features).flip(1))
    check(model)
    assert computes_in(model) != "InOpenVINO"


def test_where_the_class_map_differs_torch_is_used(
    kept: Path, made: list[object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "_different", lambda found, expected: 0.002)
    model = small()
    check(model)
    assert computes_in(model) == "SegmentationNetwork"
    assert "0.20 % of a probe's pixels" in caplog.text


def test_a_network_of_transformers_beside_it_changes_nothing() -> None:
    import transformers

    expected = network_sha256(small().network)
    config = transformers.SegformerConfig(depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4)
    transformers.SegformerForSemanticSegmentation(config).init_weights()  # it adds a method to torch's Module
    assert hasattr(nn.Module, "smart_apply")
    assert network_sha256(small().network) == expected


def test_the_digest_tells_networks_apart() -> None:
    def digest(change: Callable[[SegmentationModel], object]) -> str:
        model = small()
        change(model)
        return network_sha256(model.network)

    def swap(model: SegmentationModel) -> None:
        convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        first, second = next(
            (a, b) for i, a in enumerate(convs) for b in convs[i + 1 :] if a.weight.shape == b.weight.shape
        )
        first.weight, second.weight = second.weight, first.weight

    changes: list[Callable[[SegmentationModel], object]] = [
        lambda model: None,
        swap,
        lambda model: setattr(model.head.classifier, "dilation", (2, 2)),
        lambda model: setattr(model.network, "align_corners", True),
        lambda model: setattr(model.head, "classifier", nn.Sequential(model.head.classifier)),
    ]
    assert len({digest(change) for change in changes}) == len(changes)
    assert digest(changes[0]) == digest(lambda model: model.train())
    with pytest.raises(UnknownCodeError, match="Twisted is code of your own"):
        digest(replaced)


# --- choosing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "chosen"), [(1.5, "InOpenVINO"), (1.05, "SegmentationNetwork")])
def test_auto_measures_once(times: float, chosen: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(backend, "_times_faster", lambda *arguments: measured.append(arguments) or times)
    for _ in range(2):
        model = small()
        assert (model.predict(IMAGE, resize=None, backend="auto").mask == expected(model)).mean() >= 0.999
        assert computes_in(model, "auto") == chosen
    assert len(measured) == 1
    kept.with_name("speed.json").write_text("[damaged")
    computes_in(small(), "auto")
    assert len(measured) == 2


def test_auto_measures_what_it_says(kept: Path) -> None:
    plain = small()
    computes_in(plain, "auto")
    assert '"f32, ' in kept.with_name("speed.json").read_text()


def test_auto_is_torch_where_openvino_cannot_have_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def fail(*arguments: object) -> None:
        tried.append(arguments)
        raise ExportError("no such operator")

    monkeypatch.setattr(backend, "trace", fail)
    with pytest.raises(ExportError, match="no such operator"):
        small().predict(IMAGE, backend="openvino")
    for _ in range(2):
        model = small()
        assert (model.predict(IMAGE, resize=None, backend="auto").mask == expected(model)).all()
    assert len(tried) == 2  # and is not tried again
    assert computes_in(small(), "auto", dtype="float16") == "SegmentationNetwork"


def test_a_plain_call_never_looks(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zoo_seg.export.backend", None)
    assert (small().predict(IMAGE, resize=None).mask == expected(small())).all()


# --- refusals and the command line --------------------------------------------------------------


def test_what_openvino_cannot_do_is_refused() -> None:
    model = small()
    with pytest.raises(OptionError, match=r"float32 or bfloat16, not in float16"):
        model.predict(IMAGE, backend="openvino", dtype="float16")
    with pytest.raises(OptionError, match="leave compile out"):
        model.predict(IMAGE, backend="openvino", compile=True)
    with pytest.raises(OptionError, match=r"backend is 'tensorrt'; expected one of torch, openvino, auto"):
        model.predict(IMAGE, backend="tensorrt")
    with pytest.raises(OptionError, match="runs on the CPU, not on cuda"):
        find_backend("openvino")(model.network, torch.device("cuda"), torch.float32)


def test_a_hooked_network_is_torch_s_own(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zoo_seg")
    model = small()
    hooked(model)
    check(model)
    assert isinstance(model.predictor(backend="openvino").network, AsItIs)
    assert "torch is used and not OpenVINO" in caplog.text


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("zoo_seg.export.backend", "zoo_seg.export.openvino_file"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"\(openvino is missing\): pip install 'zoo_seg\[openvino\]'"):
        small().predict(IMAGE, backend="openvino")
    model = small()
    assert (model.predict(IMAGE, resize=None, backend="auto").mask == expected(model)).all()


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    used: list[object] = []
    stream = SegmentationModel.stream
    monkeypatch.setattr(
        SegmentationModel,
        "stream",
        lambda *args, **options: used.append(options["backend"]) or stream(*args, **options),
    )
    monkeypatch.setattr("zoo_seg.cli.predict.load_predicting", lambda arguments: small())
    arguments = ["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*arguments, "--resize", "none", "--backend", "openvino"]) == 0
    assert used == ["openvino"]
    mask = np.asarray(Image.open(tmp_path / "out" / "a_mask.png"))
    assert (mask == expected(small())).mean() >= 0.999
