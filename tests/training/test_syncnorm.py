"""BatchNorm over two processes is that of one with both their images."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from zoo_seg.training.syncnorm import ProcessBatchNorm, synchronise

pytestmark = pytest.mark.slow


def network() -> nn.Sequential:
    """A BatchNorm of torch's and one of timm's, whose activation comes with it, in double precision."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(BatchNormAct2d(4, act_layer=nn.SiLU)))
    for norm in (layers[1], layers[2][0]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return layers.double()


def inputs() -> Tensor:
    return torch.randn(4, 3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 1


def outcome(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of two steps in training and a look in `eval()`: outputs, summed gradients and statistics."""
    for _ in range(2):
        out = model.train()(x)
        (out * torch.linspace(-1, 1, out[0].numel(), dtype=out.dtype).reshape(out.shape[1:])).sum().backward()
    found = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "eval": model.eval()(x).detach(), **found, **model.state_dict()}


def _share(rank: int, folder: Path) -> None:
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    try:
        model = network()
        synchronise(model, torch.device("cpu"))
        torch.save(outcome(model, inputs()[2 * rank : 2 * rank + 2]), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def main(folder: Path) -> None:
    """Two processes with half of the images each, and this one with all of them."""
    mp.spawn(_share, args=(folder,), nprocs=2)  # type: ignore[no-untyped-call]
    torch.save(outcome(network(), inputs()), folder / "whole.pt")


def test_two_processes_normalise_as_one(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]  # of its own: what ran before in this process is none of it
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    first, second, expected = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in (0, 1, "whole"))
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        if name in ("out", "eval"):
            found: Any = torch.cat([first[name], second[name]])
        elif name.startswith("gradient"):
            found = first[name] + second[name]
        else:
            assert torch.equal(first[name], second[name]), name
            found = first[name]
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_names_and_values_stay() -> None:
    before = network()
    after = network()
    synchronise(after, torch.device("cpu"))
    assert sum(isinstance(module, ProcessBatchNorm) for module in after.modules()) == 2
    assert list(after.state_dict()) == list(before.state_dict())
    torch.testing.assert_close(after.state_dict(), before.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(after.eval()(inputs()), before.eval()(inputs()), rtol=1e-12, atol=1e-12)


def test_a_frozen_one_stays_frozen() -> None:
    model = network().eval()
    model.requires_grad_(False)
    synchronise(model, torch.device("cpu"))
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gpus_use_torchs_own() -> None:
    model = network()
    synchronise(model, torch.device("cuda"))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
