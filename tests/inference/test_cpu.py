"""Convolutions that compute the ReLU after them: the same values, and only where nothing else sees what it hides."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

import zoo_seg
from zoo_seg.families.registry import list_families
from zoo_seg.inference.cpu import ConvReLU, can_add_in_place, optimize_for_cpu
from zoo_seg.inference.prepare import prepare
from zoo_seg.manifest import load_manifest
from zoo_seg.network import build_network

pytestmark = pytest.mark.skipif(not can_add_in_place(torch.float32), reason="this torch has not oneDNN's operators")


class Chain(nn.Module):
    """A convolution with ReLU on its output, one whose output is kept, one that is added to, one computed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.kept, self.more, self.twice = (
            nn.Conv2d(4, 4, 3, padding=1, groups=groups) for groups in (4, 1, 1, 2)
        )
        self.act, self.other = nn.ReLU(inplace=True), nn.ReLU()
        self.third, self.last = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fused(x))
        x = self.kept(x)
        x = x + self.other(x)
        x = self.third(self.more(x) + 1)
        return self.twice(self.last(self.twice(x)))


@torch.no_grad()
def test_relu_is_fused_where_nothing_else_reads_the_map() -> None:
    torch.manual_seed(0)
    chain, x = Chain().eval(), torch.randn(2, 4, 9, 7)
    expected = chain(x)
    optimize_for_cpu(chain, torch.float32, lambda: chain(x))
    assert {name for name, child in chain.named_children() if type(child) is ConvReLU} == {"fused"}
    assert {name for name, child in chain.named_children() if type(child) is nn.Identity} == {"act"}
    torch.testing.assert_close(chain(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_network_is_the_same_with_relu_fused(dtype: torch.dtype) -> None:
    if not can_add_in_place(dtype):
        pytest.skip("not in this type")
    torch.manual_seed(0)
    network = zoo_seg.build_model("fcn", "test_resnet", 5, channels=8).eval().network
    x = torch.randn(1, 3, 65, 97).to(dtype)
    ready = prepare(network, torch.device("cpu"), dtype)
    assert any(type(module) is ConvReLU for module in ready.modules())
    expected, found = network.to(dtype).forward_logits(x).float(), ready.forward_logits(x).float()
    assert (found - expected).abs().max() <= (1e-4 if dtype == torch.float32 else 0.1) * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize("family", list_families())
def test_every_family_is_rewritten(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its first published network, which is not found to be another one afterwards."""
    first = next(each for each in load_manifest().models.values() if each.architecture.family == family)
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, "zoo_seg"):
        prepare(build_network(first.architecture, 3).eval(), torch.device("cpu"), torch.float32)
    assert not caplog.messages
