"""Any bytes in the place of a file or an answer: see `fuzz/targets.py` for what must hold, `fuzz/run.py` for more."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import urllib3
from conftest import toy_manifest
from helpers.servers import zip_payload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
import targets
from seeds import masks, seeds, toy_config

from zoo_seg.data.labels import Labels
from zoo_seg.errors import DownloadError
from zoo_seg.hub import download
from zoo_seg.hub.download import Source

pytestmark = pytest.mark.slow

CORPUS = sorted(path for path in (Path(__file__).parents[1] / "fuzz" / "corpus").rglob("*") if path.is_file())


def examples(count: int) -> settings:
    """The same ones every time, however slow the machine."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once(path: Path) -> None:
    targets.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_seed(name: str) -> None:
    found = seeds(name)
    assert found
    for content in found:
        targets.TARGETS[name](content)


# --- bytes --------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the files with bytes changed, cut out, put in or repeated."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(content)))
        end = begin + draw(st.integers(0, 12))
        what = draw(st.sampled_from(["change", "number", "cut", "repeat", "end"]))
        if what == "change":
            content[begin:end] = draw(st.binary(max_size=12))
        elif what == "number":
            content[begin : begin + 4] = draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF])).to_bytes(4, "little")
        elif what == "cut":
            del content[begin:end]
        elif what == "repeat":
            content[begin:begin] = content[begin:end] * draw(st.integers(1, 50))
        else:
            del content[begin:]
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
@examples(250)
@given(damaged([each for each in seeds("checkpoint")[:5] if len(each) < 20_000]))
def test_damaged_weight_files(content: bytes) -> None:
    targets.checkpoint(content)
    targets.weight_file(content)


OPCODES = [
    pickle.MARK, pickle.STOP, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS, pickle.REDUCE,
    pickle.BUILD, pickle.BINPERSID, pickle.NONE, pickle.NEWTRUE, pickle.POP, pickle.DUP, pickle.NEWOBJ,
    pickle.BINPUT + b"\0", pickle.BINGET + b"\0", pickle.BINPUT + b"\1", pickle.BINGET + b"\1", b"K\x04", b"M\x00\x10",
    b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 8, b"ccollections\nOrderedDict\n", b"c_codecs\nencode\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nFloatStorage\n",
    b"ctorch\nSize\n", b"cos\nsystem\n", b"X\x07\0\0\0storage", b"X\x01\0\0\x000", b"X\x03\0\0\0cpu",
    b"X\x05\0\0\0model", b"X\x06\0\0\0latin1",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@examples(250)
@given(st.lists(st.sampled_from(OPCODES), max_size=30), st.sampled_from(seeds("pickled")[-1:]), st.integers(0, 400))
def test_pickles_of_any_instructions(opcodes: list[bytes], valid: bytes, place: int) -> None:
    """On their own, and in the middle of a pickle that is valid."""
    targets.pickled(b"\x80\x02" + b"".join(opcodes) + b".")
    targets.pickled(valid[:place] + b"".join(opcodes) + valid[place:])


# --- JSON ---------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**63, 10**30, 1e308, -1e308, 1e-320]),
    st.text(max_size=8),
    st.sampled_from(
        ["", "toys", "\ud800", "\x00", "\x1b[2J", "../x", "https://a/../b", "file:///etc/passwd", "a" * 3000]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def edited(draw: st.DrawFn, original: dict[str, Any]) -> bytes:
    """The JSON with values replaced, removed, renamed or added, and sometimes with bytes that are none."""
    raw = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(raw))
        if not found:
            break
        *above, last = draw(st.sampled_from(found))
        parent = raw
        for step in above:
            parent = parent[step]
        what = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if what == "replace" or not isinstance(parent, dict):
            parent[last] = draw(VALUES)
        elif what == "remove":
            del parent[last]
        elif what == "rename":
            parent[draw(st.text(max_size=5))] = parent.pop(last)
        else:
            parent[draw(st.sampled_from(["size", "sha256", "x", "auto_map", "\x1b"]))] = draw(VALUES)
    text = json.dumps(raw, indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


@examples(250)
@given(edited(toy_manifest()))
def test_edited_manifests(content: bytes) -> None:
    targets.manifest(content)


@examples(150)
@given(edited(toy_config()))
def test_edited_configs(content: bytes) -> None:
    targets.config(content)


@examples(150)
@given(damaged([json.dumps(toy_manifest()).encode()]))
def test_damaged_manifests(content: bytes) -> None:
    targets.manifest(content)


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@examples(150)
@given(damaged(masks()))
def test_damaged_masks(content: bytes) -> None:
    if all(int.from_bytes(content[at : at + 4], "big") < 5000 for at in (16, 20)):  # not for the sake of memory
        targets.mask(content)


@examples(60)
@given(
    st.sampled_from(["L", "P", "I;16", "RGB"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_a_mask_is_read_as_it_was_stored(mode: str, height: int, width: int, random: Any) -> None:
    labels: Labels = targets.LABELS
    ids = np.array([[random.choice([0, 1, 2, 255]) for _ in range(width)] for _ in range(height)], np.uint8)
    colours = np.array([*labels.palette, *[labels.ignore_color] * 253], np.uint8)
    stored = colours[ids] if mode == "RGB" else ids.astype(np.uint16) if mode == "I;16" else ids
    image = Image.fromarray(stored)
    if mode == "P":
        image.putpalette(colours.tobytes())
    with tempfile.TemporaryDirectory() as folder:
        image.save(Path(folder) / "a.png")
        assert np.array_equal(labels.read(Path(folder) / "a.png"), ids)


# --- answers ------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-1, 3000).map(str), st.sampled_from(["", "*", "9" * 30, "9" * 5000, "٣", "1e3", "0x10"])
)
DATES = st.sampled_from(
    [
        "Mon, 01 Jan 2024 00:00:00 GMT",
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "1 Jan 1 0:0 +9999",
        "x",
        "Tue, 02 Jan 2024 00:00:00 -0000",
    ]
)
HEADERS = st.one_of(
    st.tuples(st.just("Content-Range"), st.builds("bytes {}-{}/{}".format, NUMBERS, NUMBERS, NUMBERS)),
    st.tuples(st.sampled_from(["Content-Length", "Retry-After"]), NUMBERS),
    st.tuples(st.sampled_from(["Date", "Last-Modified", "Retry-After"]), DATES),
    st.tuples(st.just("ETag"), st.sampled_from(['"v1"', 'W/"v1"', "", "v1"])),
    st.tuples(
        st.sampled_from(["Content-Encoding", "Content-Type"]), st.sampled_from(["gzip", "identity", "text/html", ""])
    ),
)


@examples(400)
@given(st.sampled_from([200, 206, 301, 404, 416, 429, 503, 999]), st.lists(HEADERS, max_size=5))
def test_answers_of_any_headers(status: int, headers: list[tuple[str, str]]) -> None:
    lines = [str(status), *(f"{name}:{value}" for name, value in headers)]
    targets.answer("\n".join(lines).encode("latin1", "replace"))


FILES = {version: zip_payload(3000, seed) for version, seed in (("v1", 0), ("v2", 7))}
ANSWERS = st.fixed_dictionaries(
    {
        "version": st.sampled_from(["v1", "v1", "v1", "v2"]),
        "stop": st.one_of(st.none(), st.integers(0, 3500)),
        "status": st.sampled_from([None, None, None, None, 404, 416, 429, 500, 503]),
        "tag": st.sampled_from(["right", "right", "none", "weak", "same"]),
        "ranges": st.sampled_from(["right", "right", "ignored", "shifted", "whole"]),
        "length": st.sampled_from(["right", "right", "none", "short", "long"]),
    }
)


def answer(plan: dict[str, Any], asked: dict[str, str]) -> requests.Response:
    """What a server with these faults answers."""
    body = FILES[plan["version"]]
    status, start, headers = plan["status"] or 200, 0, {}
    tags = {"right": f'"{plan["version"]}"', "weak": f'W/"{plan["version"]}"', "same": '"always"'}
    if plan["tag"] in tags:
        headers["ETag"] = tags[plan["tag"]]
    if status == 200 and "Range" in asked and plan["ranges"] != "ignored":
        unchanged = asked.get("If-Range") in (None, headers.get("ETag"))
        if unchanged or plan["ranges"] == "whole":
            wanted = int(asked["Range"].removeprefix("bytes=").rstrip("-"))
            start = min(wanted + (100 if plan["ranges"] == "shifted" else 0), len(body))
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(body) - 1}/{len(body)}"
    sent = body[start : None if plan["stop"] is None else start + plan["stop"]] if status in (200, 206) else b""
    lengths = {"right": len(body) - start, "short": max(len(body) - start - 50, 0), "long": len(body) - start + 50}
    if plan["length"] in lengths and status in (200, 206):
        headers["Content-Length"] = str(lengths[plan["length"]])
    response = requests.Response()
    response.status_code, response.reason = status, "reason"
    response.headers.update(headers)
    response.raw = urllib3.HTTPResponse(
        io.BytesIO(sent), headers, status, preload_content=False, enforce_content_length=True
    )
    return response


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    monkeypatch.setattr(download, "CHUNK", 700)


@examples(150)
@given(plans=st.lists(ANSWERS, max_size=8), known=st.booleans())
def test_a_download_gives_the_right_file_or_none(
    plans: list[dict[str, Any]], known: bool, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a server does, one answer after the other; with its sha256 the file is `v1`, else one of the two."""
    import hashlib

    left = list(plans)

    def get(url: str, headers: dict[str, str], **options: Any) -> requests.Response:
        quiet = {"version": "v1", "stop": 0, "status": 404, "tag": "none", "ranges": "right", "length": "right"}
        return answer(left.pop(0) if left else quiet, headers)

    monkeypatch.setattr(requests, "get", get)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.pth"
        sha256 = hashlib.sha256(FILES["v1"]).hexdigest() if known else None
        try:
            download.download([Source("https://a.test/w.pth"), Source("https://b.test/w.pth")], path, sha256=sha256)
        except DownloadError:
            assert not path.exists()
        else:
            assert path.read_bytes() in ([FILES["v1"]] if known else list(FILES.values()))
        assert [each.name for each in path.parent.iterdir()] == ["w.pth"] * path.exists()
