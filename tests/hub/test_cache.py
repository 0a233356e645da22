"""The cache: what is in it is used without a request, what is damaged is fetched again, what changed is refused."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.records import ID, LINK, record
from helpers.servers import Server, send, status, zip_payload

from zoo_seg import settings
from zoo_seg.errors import DownloadError, HashMismatchError, OfflineError, OptionError
from zoo_seg.hub import cache, download
from zoo_seg.manifest import File, Weights, list_weights

BODY, OTHER = zip_payload(20_000), zip_payload(20_000, seed=1)
SHA256, OTHER_SHA256 = hashlib.sha256(BODY).hexdigest(), hashlib.sha256(OTHER).hexdigest()

UNPINNED = record()
PINNED = dataclasses.replace(UNPINNED, files=(File(LINK, size=len(BODY), sha256=SHA256),))


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ZOO_SEG_OFFLINE", "HF_HUB_OFFLINE", "ZOO_SEG_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZOO_SEG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "BACKOFF", 0.001)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves `https://zoo.test/`."""
    import requests

    real = requests.get
    with Server() as server:
        server.files["w.pth"] = BODY
        monkeypatch.setattr(requests, "get", lambda url, **kw: real(url.replace("https://zoo.test", server.base), **kw))
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "weights" / ID / "w.pth"


def touch(path: Path, seconds: int = 5) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + seconds * 10**9))


# --- hits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [UNPINNED, PINNED], ids=["unpinned", "pinned"])
def test_the_second_time_nothing_is_asked_and_nothing_hashed(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    assert cache.fetch(weights) == cache.CachedFile(path, SHA256)
    assert path.read_bytes() == BODY
    assert (
        json.loads(path.with_name("w.pth.json").read_text()).items()
        >= {
            "url": LINK,
            "etag": '"v1"',
            "size": len(BODY),
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": SHA256,
        }.items()
    )
    assert (settings.home() / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    monkeypatch.setattr(cache, "hash_file", pytest.fail)
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    assert cache.fetch(weights) == cache.CachedFile(path, SHA256)
    assert len(server.asked) == 1


def test_a_touched_file_is_hashed_once_and_accepted(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fetch(UNPINNED)
    touch(path)
    assert cache.fetch(UNPINNED).sha256 == SHA256
    monkeypatch.setattr(cache, "hash_file", pytest.fail)
    assert cache.fetch(UNPINNED).sha256 == SHA256
    assert len(server.asked) == 1


@pytest.mark.parametrize("weights", [UNPINNED, PINNED], ids=["unpinned", "pinned"])
@pytest.mark.parametrize("damage", [OTHER, BODY[:-10], b""], ids=["other bytes", "short", "empty"])
def test_a_damaged_file_is_fetched_again(
    server: Server, path: Path, caplog: pytest.LogCaptureFixture, weights: Weights, damage: bytes
) -> None:
    cache.fetch(weights)
    path.write_bytes(damage)
    touch(path)
    assert cache.fetch(weights).sha256 == SHA256
    assert path.read_bytes() == BODY
    assert len(server.asked) == 2
    assert f"{path} is damaged" in caplog.text


def test_a_file_that_someone_put_there(server: Server, path: Path) -> None:
    path.parent.mkdir(parents=True)
    for weights, body, asked in ((PINNED, BODY, 0), (UNPINNED, BODY, 0), (PINNED, OTHER, 1), (UNPINNED, b"<html>", 2)):
        path.with_name("w.pth.json").unlink(missing_ok=True)
        path.write_bytes(body)
        assert cache.fetch(weights).sha256 == SHA256 == cache.check(path)
        assert len(server.asked) == asked


def test_a_record_that_is_not_json_is_no_record(server: Server, path: Path) -> None:
    cache.fetch(PINNED)
    for text in (
        "",
        "[]",
        '{"sha256": 1}',
        json.dumps({**json.loads(cache._record_path(path).read_text()), "sha256": "x"}),
    ):
        cache._record_path(path).write_text(text)
        assert cache.read_record(path) is None
        assert cache.check(path) is None
        assert cache.fetch(PINNED).sha256 == SHA256 == cache.check(path)
    assert len(server.asked) == 1


def test_a_read_only_cache_is_used(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.fetch(UNPINNED)
    touch(path)

    def read_only(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "write_text", "replace", "unlink"):
        monkeypatch.setattr(Path, name, read_only)
    assert cache.fetch(UNPINNED).sha256 == SHA256
    with pytest.raises(DownloadError, match=r"Read-only file system.*ZOO_SEG_HOME"):
        cache.fetch(dataclasses.replace(UNPINNED, id="another.toy_test"))
    assert len(server.asked) == 1


def test_a_home_that_cannot_be_made(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_SEG_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(DownloadError, match=r"cannot write in .*file/home.*ZOO_SEG_HOME"):
        cache.fetch(UNPINNED)


# --- hashes -------------------------------------------------------------------------------------


def test_the_first_hash_is_told_and_binds_later_downloads(
    server: Server, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "zoo_seg"):
        cache.fetch(UNPINNED)
    assert [entry.levelname for entry in caplog.records] == ["INFO"]
    assert SHA256 in caplog.text
    path.unlink()
    server.files["w.pth"] = OTHER
    with pytest.raises(HashMismatchError) as caught:
        cache.fetch(UNPINNED)
    for part in (SHA256, OTHER_SHA256, LINK, f"delete {path}.json"):
        assert part in str(caught.value)
    assert not path.exists()
    Path(f"{path}.json").unlink()
    assert cache.fetch(UNPINNED).sha256 == OTHER_SHA256


def test_a_published_hash_binds_the_first_download(server: Server, path: Path) -> None:
    server.files["w.pth"] = OTHER
    with pytest.raises(HashMismatchError) as caught:
        cache.fetch(PINNED)
    assert "delete" not in str(caught.value)
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock"]


def test_a_hash_published_later_overrides_what_was_seen(server: Server, path: Path) -> None:
    server.files["w.pth"] = OTHER
    cache.fetch(UNPINNED)
    server.files["w.pth"] = BODY
    assert cache.fetch(PINNED).sha256 == SHA256


@pytest.mark.parametrize(("digits", "holds"), [(SHA256[:8].upper(), True), ("00000000", False), (None, None)])
def test_digits_in_a_name_are_reported_and_not_enforced(server: Server, digits: str | None, holds: bool | None) -> None:
    weights = record(File(LINK, sha256_prefix_claimed=digits))
    assert [cache.fetch(weights).prefix_claim_holds for _ in range(2)] == [holds, holds]


# --- sources ------------------------------------------------------------------------------------


def test_mirrors_then_the_next_file(server: Server, path: Path) -> None:
    server.files["second.pth"] = BODY
    server.always["w.pth"] = server.always["copy.pth"] = status(404)
    first = File(LINK, mirrors=("https://zoo.test/copy.pth",))
    found = cache.fetch(record(first, File("https://zoo.test/second.pth")))
    assert found == cache.CachedFile(path.with_name("second.pth"), SHA256)
    assert [asked.path for asked in server.asked] == ["w.pth", "copy.pth", "second.pth"]
    with pytest.raises(DownloadError) as caught:
        cache.fetch(dataclasses.replace(record(first, File("https://zoo.test/none.pth")), id="b.toy_test"))
    assert [name in str(caught.value) for name in ("w.pth", "copy.pth", "none.pth")] == [True] * 3


def test_a_mirror_is_asked_for_the_longest_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = max((name for each in list_weights() for file in each.files for name in file.names), key=len)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / longest).write_bytes(BODY)
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(mirror))
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    weights = dataclasses.replace(UNPINNED, id="long.toy_test", files=(File(f"https://zoo.test/{longest}"),))
    assert cache.fetch(weights).sha256 == SHA256


def test_a_mirror_folder_comes_first_and_works_offline(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "my mirror"
    mirror.mkdir()
    (mirror / "w.pth").write_bytes(BODY)
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(mirror))
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    assert cache.fetch(PINNED).sha256 == SHA256
    (mirror / "w.pth").write_bytes(OTHER)
    with pytest.raises(HashMismatchError, match=OTHER_SHA256):
        cache.fetch(dataclasses.replace(PINNED, id="b.toy_test"))
    assert server.asked == []


def test_a_mirror_server_comes_first_under_each_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_SEG_MIRROR", f"{server.base}/zoo/")
    server.files["zoo/copy.pth"] = BODY
    weights = record(File(LINK, mirrors=("https://other.test/copy.pth",)))
    assert cache.fetch(weights).path.name == "w.pth"
    assert [asked.path for asked in server.asked] == ["zoo/w.pth", "zoo/copy.pth"]
    monkeypatch.setenv("ZOO_SEG_MIRROR", "https://zoo.test/empty")
    assert cache.fetch(dataclasses.replace(UNPINNED, id="b.toy_test")).sha256 == SHA256
    assert [asked.path for asked in server.asked[2:]] == ["empty/w.pth", "w.pth"]


@pytest.mark.parametrize("switch", ["ZOO_SEG_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_where_it_looked_and_what_to_type(
    server: Server, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv(switch, "1")
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(tmp_path / "nothing"))
    with pytest.raises(OfflineError) as caught:
        cache.fetch(UNPINNED)
    for part in (str(path.parent), str(tmp_path / "nothing"), f"zoo-seg download {ID} --to DIR", "ZOO_SEG_MIRROR"):
        assert part in str(caught.value)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "w.pth").write_bytes(b"<html>")
    with pytest.raises(OfflineError, match="a web page"):
        cache.fetch(UNPINNED)
    with pytest.raises(OfflineError, match="copy the file to this machine and pass its path"):
        cache.fetch_link(LINK)
    assert server.asked == []


def _fetch_together(start: Any, results: Any) -> None:
    start.wait(30)
    results.put(cache.fetch(UNPINNED).sha256)


def test_eight_processes_make_one_download(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_SEG_MIRROR", server.base)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_fetch_together, args=(start, results), daemon=True) for _ in range(8)]
    for process in processes:
        process.start()
    assert {results.get(timeout=30) for _ in processes} == {SHA256}
    assert len(server.asked) == 1


# --- links --------------------------------------------------------------------------------------


def test_a_link_is_cached_and_bound_to_its_first_hash(server: Server, tmp_path: Path) -> None:
    found = cache.fetch_link(LINK)
    folder = hashlib.sha256(LINK.encode()).hexdigest()[:16]
    assert found == cache.CachedFile(tmp_path / "home" / "links" / folder / "w.pth", SHA256)
    assert cache.fetch_link(LINK) == found
    assert len(server.asked) == 1
    found.path.write_bytes(b"")
    server.files["w.pth"] = OTHER
    with pytest.raises(HashMismatchError, match="delete "):
        cache.fetch_link(LINK)


@pytest.mark.parametrize(
    ("end", "name"),
    [
        ("..%2F..%2Fetc%2Fpasswd", "_.._etc_passwd"),
        ("..", "weights"),
        ("", "weights"),
        ("%00a%20b%09.pth?token=1#x", "_a_b_.pth"),
        (".hidden", "hidden"),
        ("C%3A%5Cw.pth", "C__w.pth"),
        ("x" * 300 + ".pth", "x" * 196 + ".pth"),
    ],
)
def test_hostile_names_stay_in_their_folder(server: Server, tmp_path: Path, end: str, name: str) -> None:
    url = f"https://zoo.test/{end}"
    server.always[end.split("#")[0]] = send(BODY)
    server.always[""] = send(BODY)
    found = cache.fetch_link(url)
    assert found.path.name == name
    assert found.path.parent.parent == tmp_path / "home" / "links"
    assert "token" not in cache._record_path(found.path).read_text()


def test_a_file_link_is_used_where_it_is(tmp_path: Path) -> None:
    here = tmp_path / "my weights.pth"
    here.write_bytes(BODY)
    assert cache.fetch_link(here.as_uri()) == cache.CachedFile(here, SHA256)
    assert list(tmp_path.iterdir()) == [here]
    here.write_bytes(b"<html>")
    with pytest.raises(DownloadError, match="a web page"):
        cache.fetch_link(here.as_uri())
    with pytest.raises(DownloadError, match="No such file"):
        cache.fetch_link(f"{here.as_uri()}.none")


@pytest.mark.parametrize("url", ["http://zoo.test/w.pth", "ftp://zoo.test/w.pth", "http://[bad"])
def test_other_links_are_refused(server: Server, url: str) -> None:
    with pytest.raises(OptionError, match="expected https://, hf:// or file://"):
        cache.fetch_link(url)
    assert server.asked == []


def test_a_repository_stands_for_its_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def hf_hub_download(repository: str, name: str, *, revision: str | None, local_dir: str) -> str:
        assert (repository, name, revision) == ("org/repo", "model.safetensors", "v1")
        (Path(local_dir) / name).write_bytes(BODY)
        return str(Path(local_dir) / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    assert cache.fetch_link("hf://org/repo@v1").path.name == "model.safetensors"


# --- export and verify --------------------------------------------------------------------------


@pytest.mark.parametrize("cached_before", [True, False])
def test_what_is_exported_serves_as_mirror(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached_before: bool
) -> None:
    if cached_before:
        cache.fetch(UNPINNED)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "SHA256SUMS").write_text(f"{OTHER_SHA256}  other.pth\n")
    for _ in range(2):
        assert cache.export(UNPINNED, mirror) == mirror / "w.pth"
    assert len(server.asked) == 1
    assert sorted(p.name for p in mirror.iterdir()) == [".lock", "SHA256SUMS", "w.pth"]
    assert (mirror / "SHA256SUMS").read_text() == f"{OTHER_SHA256}  other.pth\n{SHA256}  w.pth\n"

    (mirror / "w.pth").write_bytes(b"spoiled")  # an export that went bad is made anew
    cache.export(UNPINNED, mirror)
    monkeypatch.setenv("ZOO_SEG_HOME", str(tmp_path / "another machine"))
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(mirror))
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    assert cache.fetch(UNPINNED).sha256 == SHA256


def test_exporting_without_cache_needs_no_second_copy(server: Server, tmp_path: Path) -> None:
    cache.export(PINNED, tmp_path / "out")
    assert not (tmp_path / "home").exists()


def test_verify_sets_damaged_files_aside(server: Server, path: Path) -> None:
    cache.fetch(UNPINNED)
    link = cache.fetch_link(LINK).path
    copy = path.with_name(f"w.pth.{SHA256[:12]}.safetensors")
    copy.write_bytes(OTHER)
    cache.write_record(copy)
    loose = path.with_name("loose.pth")
    loose.write_bytes(OTHER)
    path.with_name(f"w.pth.{'a' * 12}.part").touch()
    path.with_name("w.pth.lock").touch()
    bad = bytearray(BODY)
    bad[500] ^= 1
    status = path.stat()
    path.write_bytes(bad)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # a rotten bit changes no time

    found = {each.path: each for each in cache.verify()}
    got = hashlib.sha256(bad).hexdigest()
    assert found == {
        path: cache.Verified(ID, path, SHA256, got, "damaged"),
        copy: cache.Verified(ID, copy, OTHER_SHA256, OTHER_SHA256, "ok"),
        loose: cache.Verified(ID, loose, None, OTHER_SHA256, "unrecorded"),
        link: cache.Verified(link.parent.name, link, SHA256, SHA256, "ok"),
    }
    assert not path.exists()
    assert path.with_name("w.pth.damaged").read_bytes() == bad
    assert cache.fetch(UNPINNED).sha256 == SHA256
    assert all(each.status != "damaged" for each in cache.verify())


def test_an_empty_cache_verifies() -> None:
    assert list(cache.verify(progress=True)) == []


def test_what_another_module_keeps_in_the_cache(tmp_path: Path, monkeypatch: Any) -> None:
    copy = tmp_path / "copy.safetensors"
    assert cache.check(copy) is None
    copy.write_bytes(BODY)
    assert cache.check(copy) is None
    assert cache.write_record(copy) == SHA256 == cache.check(copy)
    copy.write_bytes(OTHER)
    touch(copy)
    assert cache.check(copy) is None
