"""Many processes with many threads ask for the same weights at the same moment."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import Zoo
from helpers.processes import CONTEXT, start, together
from helpers.servers import Server

from zoo_seg import create_model

pytestmark = pytest.mark.slow

if sys.platform == "win32":
    pytest.skip("Windows has no fork", allow_module_level=True)

PROCESSES, THREADS = 16, 4


def class_map() -> bytes:
    torch.set_num_threads(1)
    model = create_model("toy_r50", "toys", progress=False)
    with torch.inference_mode():
        return bytes(model(torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)).argmax(1).to(torch.uint8).numpy())


def test_one_download_and_as_many_networks(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server:
        monkeypatch.setenv("ZOO_SEG_MIRROR", server.base)
        server.files["toys.pth"] = (zoo.mirror / "toys.pth").read_bytes()
        begin, results = CONTEXT.Barrier(PROCESSES), CONTEXT.Queue()
        crowd = [start(together, class_map, THREADS, begin, results) for _ in range(PROCESSES)]
        found = [one for _ in crowd for one in results.get(timeout=120)]
        for process in crowd:
            process.join(60)
        assert [asked.path for asked in server.asked] == ["toys.pth"]
        assert server.sent == len(server.files["toys.pth"])
    assert found == [class_map()] * (PROCESSES * THREADS)
    assert len(set(found[0])) > 1
