"""What a prepared network does to memory, and that it changes no value."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo_seg
from zoo_seg.inference import cpu
from zoo_seg.inference.memory import drop_file_pages
from zoo_seg.inference.prepare import prepare
from zoo_seg.inference.snapshot import Snapshot
from zoo_seg.model import SegmentationModel

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems are left alone")


def build(family: str, backbone: str = "resnet26") -> SegmentationModel:
    """Residual blocks of three convolutions, and running statistics that are worth folding."""
    torch.manual_seed(0)
    stride = None if family == "semanticfpn" else 8
    model = zoo_seg.build_model(family, backbone, 5, output_stride=stride, channels=32)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("family", ["fcn", "pspnet", "semanticfpn"])
def test_a_prepared_network_computes_the_same(family: str, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_place:
        monkeypatch.setattr(cpu, "can_add_in_place", lambda dtype: False)
    model, x = build(family), torch.randn(2, 3, 70, 90)
    before = copy.deepcopy(model.state_dict())
    ready = prepare(model.network, CPU, torch.float32)
    assert any(isinstance(module, cpu.ResidualBlock) for module in ready.modules()) == (
        in_place and cpu.can_add_in_place(torch.float32)
    )
    with torch.inference_mode():
        given = x.clone()
        expected, found = model.forward_logits(x), ready.forward_logits(given)
    assert torch.equal(given, x)  # the blocks that overwrite their input do not overwrite the image
    assert (found - expected).abs().max() < 1e-4 * expected.std()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_blocks_of_another_kind_stay_as_they_are() -> None:
    ready = prepare(build("fcn", "ecaresnet26t").network, CPU, torch.float32)
    assert not any(isinstance(module, cpu.ResidualBlock) for module in ready.modules())


def resident() -> int:
    """Bytes of files that this process has in memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    """16 MB that are read from a file when they are touched."""
    save_file({"a": torch.arange(1 << 22, dtype=torch.float32)}, tmp_path / "a.safetensors")
    return load_file(tmp_path / "a.safetensors")["a"]


@linux
def test_a_mapped_tensor_leaves_memory_and_comes_back(mapped: torch.Tensor) -> None:
    total = mapped.sum()
    before = resident()
    drop_file_pages(mapped)
    assert before - resident() > 15 << 20
    assert mapped.sum() == total


@linux
def test_what_was_changed_stays(mapped: torch.Tensor) -> None:
    mapped[1 << 21] = -1
    mapped.sum()
    drop_file_pages(mapped)
    assert mapped[1 << 21] == -1


@pytest.mark.parametrize("tensor", [torch.ones(1 << 20), torch.ones(0), torch.ones(4, 6, 8)[:, ::2].transpose(0, 2)])
def test_a_tensor_of_no_file_stays(tensor: torch.Tensor) -> None:
    drop_file_pages(tensor)
    assert (tensor == 1).all()


@linux
def test_a_mapped_network_is_watched_without_staying_in_memory(mapped: torch.Tensor) -> None:
    network = torch.nn.ParameterList([mapped])
    before = resident()
    snapshot = Snapshot(network)
    assert snapshot.is_current(network)
    assert resident() - before < 1 << 20
    network[0].data[1 << 21] = -1
    assert not snapshot.is_current(network)
