"""What a fuzzer feeds: each target takes any bytes and raises only where the library breaks its word.

Its word: a file is read or refused with an exception of this library, whose message can be printed and has an end;
and what was read keeps to the rules that the rest of the library relies on.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from helpers.hostile import legacy, safetensors, zipped

from zoo_seg.checkpoints.convert import convert
from zoo_seg.checkpoints.opening import check_finite, open_checkpoint
from zoo_seg.config import CONFIG, read_config
from zoo_seg.data.labels import Labels
from zoo_seg.errors import CheckpointError, DataError, ManifestError, ZooSegError
from zoo_seg.hub import download
from zoo_seg.hub.files import check_weight_file
from zoo_seg.hub.partial import Partial, Version
from zoo_seg.manifest import get_architecture, published_manifest, read_manifest

BASE = read_manifest(published_manifest())
_, ARCHITECTURE = get_architecture("fcn_resnet50_os8")
LABELS = Labels(("ground", "wall", "sky"), ((10, 20, 30), (200, 0, 0), (0, 0, 200)), 255, ignore_color=(255, 255, 255))


@contextmanager
def _file(content: bytes, name: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        (folder / name).write_bytes(content)
        yield folder / name
        assert [path.name for path in folder.iterdir()] == [name], "something was written beside the file"
    finally:
        shutil.rmtree(folder)


@contextmanager
def _refused(*kinds: type[ZooSegError]) -> Iterator[None]:
    """Lets through what the library may raise, and looks at the message."""
    try:
        yield
    except kinds as error:
        message = str(error)
        assert message.replace("\n", " ").isprintable(), f"not printable: {message!r}"
        assert len(message) < 2000, f"a message of {len(message)} letters"


def manifest(content: bytes) -> None:
    with _file(content, "mine.json") as path, _refused(ManifestError):
        read = read_manifest(path, BASE)
        for record in read.weights.values():
            assert record.id == f"{record.model}.{record.tag}"
            assert "/" not in record.id
            for file in record.files:
                assert all("/" not in name and not name.startswith(".") for name in file.names)
                assert all(
                    url.startswith(("https://", "hf://", "file://", "package://")) for url in (file.url, *file.mirrors)
                )


def config(content: bytes) -> None:
    with _file(content, CONFIG) as path, _refused(ManifestError, CheckpointError):
        read = read_config(path.parent)
        assert read.in_chans >= 1
        assert len(read.classes) == len(read.palette) > 0


def checkpoint(content: bytes) -> None:
    with _file(content, "weights") as path, _refused(CheckpointError):
        tensors, _ = open_checkpoint(path)
        assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= len(content)
        check_finite(path, tensors)
        convert(tensors, ARCHITECTURE)


def pickled(content: bytes) -> None:
    """A pickle in both of torch's containers: their checksums and offsets hold."""
    for container in (zipped, legacy):
        checkpoint(container(content))


def header(content: bytes) -> None:
    """The header of a safetensors file, whose length holds."""
    checkpoint(safetensors(content, bytes(64)))


def weight_file(content: bytes) -> None:
    with _file(content, "weights") as path, suppress(ValueError):
        check_weight_file(path)


def mask(content: bytes) -> None:
    with _file(content, "mask.png") as path, _refused(DataError):
        ids = LABELS.read(path)
        assert ids.ndim == 2
        assert ids.dtype == np.uint8
        assert set(np.unique(ids).tolist()) <= {0, 1, 2, 255}


def answer(content: bytes) -> None:
    """The headers of an answer to a request for the rest of a file: the first line is the status, then the headers."""
    status, *lines = content.decode("latin1").split("\n")
    headers = dict(line.partition(":")[::2] for line in lines if ":" in line)
    code = int(status) if status.isascii() and status.isdigit() and len(status) == 3 else 206
    response: Any = SimpleNamespace(
        status_code=code, reason="reason", headers=headers, iter_content=lambda size: iter([b"<html>"])
    )
    partial = cast(Partial, SimpleNamespace(size=1000, restart=lambda: None))
    try:
        start, total = download._check_answer(response, partial)
    except (download._Refused, ValueError):  # what is no number becomes a refusal
        return
    except download._Broken as error:
        assert error.wait is None or 0 <= error.wait <= download.MAX_RETRY_AFTER
        return
    assert start is None or start >= -1
    assert total is None or total >= 0
    version = Version.of("https://host/name", headers, total)
    assert version.may_continue(version)
    if version.validator and not version.etag:
        assert version.validator == version.modified


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (manifest, config, checkpoint, pickled, header, weight_file, mask, answer)
}
