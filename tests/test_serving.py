"""The service of docs/serving.md, asked by real requests."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

import zoo_seg

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

pytestmark = pytest.mark.slow

FOLDER = REPOSITORY / "examples" / "serve"


def street(width: int = 128, height: int = 96, left: int = 0) -> Image.Image:
    with Image.open(REPOSITORY / "examples" / "street.jpg") as image:
        return image.convert("RGB").crop((left, 100, left + width, 100 + height))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


@contextmanager
def serving(*limits: str) -> Iterator[Any]:
    """A client of the service, in a process of its own, with other limits than the file's."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    code = f"import app, uvicorn\n{'; '.join(limits)}\nuvicorn.run(app.app, port={port}, log_level='warning')"
    environment = {**os.environ, "PYTHONPATH": f"{FOLDER}:{REPOSITORY}", "ZOO_SEG_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            for _ in range(600):
                assert process.poll() is None, process.stderr and process.stderr.read().decode()
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with serving("app.MAX_BYTES = 200_000", "app.MAX_PIXELS = 300 * 300") as client:
        yield client


@pytest.fixture(scope="module")
def model() -> zoo_seg.SegmentationModel:
    return zoo_seg.create_model("semanticfpn_mobilenetv4_small", "camvid")


def test_the_mask_is_predict_s(client: Any, model: zoo_seg.SegmentationModel) -> None:
    answer = client.post("/segment", content=encoded(street()))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    mask = Image.open(io.BytesIO(answer.content))
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), model.predict(street()).mask)


def test_a_jpeg_and_json(client: Any, model: zoo_seg.SegmentationModel) -> None:
    content = encoded(street(), "JPEG")
    answer = client.post("/segment", content=content, headers={"Accept": "application/json"})
    expected = model.predict(Image.open(io.BytesIO(content)))
    assert answer.json() == {"width": 128, "height": 96, "areas": expected.areas()}


def test_many_at_a_time(client: Any, model: zoo_seg.SegmentationModel) -> None:
    """Of two sizes, so that a batch holds both, and a damaged one among them."""
    images = [street(128 + 32 * (place % 2), 96, left=8 * place) for place in range(12)]
    contents = [*map(encoded, images), encoded(street())[:2000]]
    with ThreadPoolExecutor(len(contents)) as pool:
        *answers, damaged = pool.map(lambda content: client.post("/segment", content=content), contents)
    for image, answer in zip(images, answers, strict=True):
        found = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert (found == model.predict(image).mask).mean() > 0.999
    assert damaged.status_code == 422
    assert "truncated" in damaged.json()["detail"]


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"GIF89a nothing", 415, "no image; send the bytes of a JPEG, PNG or WebP"),
        (b"", 415, "no image"),
        (encoded(Image.new("L", (40, 40)), "TIFF"), 415, "no image"),
        (encoded(Image.new("L", (301, 300))), 413, "301x300 pixels; at most 90000 are taken"),
        (os.urandom(200_001), 413, "more than 200000 bytes"),
    ],
    ids=["text", "empty", "TIFF", "pixels", "bytes"],
)
def test_what_is_refused(client: Any, content: bytes, status: int, words: str) -> None:
    answer = client.post("/segment", content=content)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_health(client: Any, model: zoo_seg.SegmentationModel) -> None:
    assert client.get("/health").json() == {"waiting": 0, "classes": list(model.classes)}


def test_it_is_over_after_a_while() -> None:
    """The network takes three seconds here: one image waits too long, then there is no room for a third."""
    slow = "real = app.predict; import time; app.predict = lambda images: time.sleep(3) or real(images)"
    with serving("app.TIMEOUT = 0.5", slow) as client:
        answer = client.post("/segment", content=encoded(street()))
        assert answer.status_code == 504
        assert "no answer within 0.5 s" in answer.json()["detail"]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import app

    yield app
    del sys.modules["app"]


def test_what_waits_is_one_batch(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue refuses; what it holds goes through the network together, except what has timed out."""
    batches: list[int] = []
    monkeypatch.setattr(app, "predict", lambda images: batches.append(len(images)) or images)

    async def run() -> list[Any]:
        waiting: asyncio.Queue[Any] = asyncio.Queue(5)
        answers = [asyncio.get_running_loop().create_future() for _ in range(5)]
        for answer in answers:
            waiting.put_nowait((street(), answer))
        answers[2].cancel()
        with pytest.raises(asyncio.QueueFull):
            waiting.put_nowait((street(), None))
        worker = asyncio.create_task(app.work(waiting))
        found = await asyncio.gather(*answers, return_exceptions=True)
        worker.cancel()
        return found

    found = asyncio.run(run())
    assert batches == [4]
    assert [isinstance(each, Image.Image) for each in found] == [True, True, False, True, True]


def test_an_error_reaches_everyone_who_waits(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(images: list[Image.Image]) -> None:
        raise MemoryError("too little")

    monkeypatch.setattr(app, "predict", fail)

    async def run() -> list[Any]:
        waiting: asyncio.Queue[Any] = asyncio.Queue()
        answers = [asyncio.get_running_loop().create_future() for _ in range(2)]
        for answer in answers:
            waiting.put_nowait((street(), answer))
        worker = asyncio.create_task(app.work(waiting))
        found = await asyncio.gather(*answers)
        assert not worker.done()
        worker.cancel()
        return found

    assert [type(each) for each in asyncio.run(run())] == [MemoryError, MemoryError]


def test_the_file_stays_short() -> None:
    lines = (FOLDER / "app.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) < 70


def test_the_container_s_file_names_what_is_there() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    assert all((REPOSITORY / Path(name)).exists() for name in ("examples/serve/app.py", "pyproject.toml"))
    assert "USER serve" in text
    assert text.index("useradd") < text.index("USER serve") < text.index("CMD")
