"""`download` against servers that misbehave: every file that arrives is whole and right, or there is none."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.servers import Server, endless, redirect, send, serve, status, wrong_range, zip_payload

from zoo_seg.errors import DownloadError, HashMismatchError
from zoo_seg.hub import download as module
from zoo_seg.hub import partial
from zoo_seg.hub.download import Downloaded, Source, download
from zoo_seg.hub.files import check_weight_file, exclusive, replacing

BODY = zip_payload(200_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.files["w.pth"] = BODY
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF", 0.001)
    monkeypatch.setattr(module, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr(module, "CHUNK", 4096)


def get(server: Server, folder: Path, **options: Any) -> Downloaded:
    return download([Source(server.url("w.pth"), allow_http=True)], folder / "w.pth", **options)


def refusal(server: Server, folder: Path, **options: Any) -> str:
    """The message of a download that must fail and leave nothing."""
    with pytest.raises(DownloadError) as caught:
        get(server, folder, **options)
    assert list(folder.iterdir()) == []
    assert server.url("w.pth") in str(caught.value)
    assert "ZOO_SEG_MIRROR" in str(caught.value)
    return str(caught.value)


def test_plain_download(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = get(server, tmp_path, size=len(BODY), sha256=SHA256)
    assert got == Downloaded(tmp_path / "w.pth", server.url("w.pth"), len(BODY), SHA256, '"v1"')
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]
    assert got.path.read_bytes() == BODY
    assert server.asked[0].headers["accept-encoding"] == "identity"
    assert capsys.readouterr().err == ""


def test_progress_is_shown_on_a_terminal_only(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    get(server, tmp_path, progress=False)
    assert terminal.getvalue() == ""
    get(server, tmp_path)
    assert "w.pth" in terminal.getvalue()
    assert "200k/200k" in terminal.getvalue()


# --- several sources ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_not_repeated_and_the_next_source_is_asked(server: Server, tmp_path: Path, code: int) -> None:
    server.always["gone.pth"] = status(code)
    sources = [Source(server.url(name), allow_http=True) for name in ("gone.pth", "w.pth")]
    assert download(sources, tmp_path / "x.pth").url == server.url("w.pth")
    assert [asked.path for asked in server.asked] == ["gone.pth", "w.pth"]


def test_the_error_lists_each_source_and_why(server: Server, tmp_path: Path) -> None:
    server.always["page"] = send(b"<!DOCTYPE html><title>Sign in</title>", "text/html; charset=utf-8")
    closed = Server()
    closed.shutdown()
    closed.server_close()
    urls = [server.url("gone"), server.url("page"), closed.url("w.pth"), "https://[bad/w.pth", "ftp://host/w.pth"]
    urls += [(tmp_path / "none.pth").as_uri(), "file://host/w.pth", "hf://nothing"]
    with pytest.raises(DownloadError) as caught:
        download([Source(url, allow_http=True) for url in urls], tmp_path / "w.pth")
    lines = str(caught.value).splitlines()[1:]
    for line, reason in zip(
        lines,
        [
            "HTTP 404",
            "a web page beginning '<!DOCTYPE html><title>Sign in</title>'",
            "refused; gave up after 4 attempts",
            "cannot be asked (Invalid",
            "only https",
            "No such file",
            "names a host",
            "expected hf://",
            "pass its path",
        ],
        strict=True,
    ):
        assert reason in line
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_an_answer_is_asked_last_and_once_by_the_next_file(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        met = []

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    met.append(dead.accept()[0].close())

        threading.Thread(target=hang_up, daemon=True).start()
        silent = Source(f"http://127.0.0.1:{dead.getsockname()[1]}/w.pth", allow_http=True)
        working = Source(server.url("w.pth"), allow_http=True)
        assert download([silent, working], tmp_path / "a.pth").url == working.url
        first = len(met)
        assert first >= 4
        assert download([silent, working], tmp_path / "b.pth").url == working.url
        assert len(met) == first
        with pytest.raises(DownloadError, match="gave up after 1 attempt\n"):
            download([silent], tmp_path / "c.pth")
        dead.shutdown(socket.SHUT_RDWR)


def test_no_source_at_all(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="there is no source"):
        download([], tmp_path / "w.pth")


def test_wrong_bytes_go_on_to_the_next_source_and_then_fail_with_both_hashes(server: Server, tmp_path: Path) -> None:
    other = zip_payload(200_000, seed=1)
    server.files["other.pth"] = other
    sources = [Source(server.url(name), allow_http=True) for name in ("other.pth", "w.pth")]
    assert download(sources, tmp_path / "x.pth", sha256=SHA256).url == server.url("w.pth")
    with pytest.raises(HashMismatchError) as caught:
        download(sources[:1], tmp_path / "y.pth", sha256=SHA256)
    for part in (server.url("other.pth"), SHA256, hashlib.sha256(other).hexdigest(), f"{len(other)} bytes"):
        assert part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_file_link_passes_the_same_checks(tmp_path: Path) -> None:
    here = tmp_path / "a folder" / "w.pth"
    here.parent.mkdir()
    here.write_bytes(BODY)
    assert download([Source(here.as_uri())], tmp_path / "x.pth", sha256=SHA256).sha256 == SHA256
    with pytest.raises(HashMismatchError):
        download([Source(here.as_uri())], tmp_path / "y.pth", sha256="0" * 64)
    here.write_bytes(BODY[:-100])
    with pytest.raises(DownloadError, match="zip file without its end"):
        download([Source(here.as_uri())], tmp_path / "y.pth")
    assert not (tmp_path / "y.pth").exists()


def test_the_hub_downloads_for_hf_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[object, ...]] = []

    def hf_hub_download(repository: str, name: str, *, revision: str | None, local_dir: str) -> str:
        asked.append((repository, name, revision))
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(BODY)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    got = download([Source("hf://org/repo@v1/sub/w.pth")], tmp_path / "w.pth", sha256=SHA256, size=len(BODY))
    assert asked == [("org/repo", "sub/w.pth", "v1")]
    assert got.path.read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]

    def fails(*args: object, **options: object) -> str:
        raise RuntimeError("401 Client Error.\n\nCannot access gated repo")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    with pytest.raises(DownloadError, match=r"hf://org/repo/w.pth: RuntimeError: 401 Client Error. Cannot access"):
        download([Source("hf://org/repo/w.pth")], tmp_path / "x.pth")


# --- redirects ----------------------------------------------------------------------------------


def test_redirects_are_followed_without_credentials_for_another_host(server: Server, tmp_path: Path) -> None:
    with Server() as other:
        other.files["w.pth"] = BODY
        server.always["w.pth"] = redirect("/here")
        server.always["here"] = redirect(other.url("w.pth"))
        url = server.url("w.pth").replace("//", "//user:secret@")
        got = download([Source(url, allow_http=True)], tmp_path / "w.pth")
        assert [asked.headers.get("authorization", "")[:5] for asked in server.asked] == ["Basic", "Basic"]
        assert "authorization" not in other.asked[0].headers
        assert got.url == server.url("w.pth")  # and no secret in what is kept


def test_a_circle_of_redirects_ends(server: Server, tmp_path: Path) -> None:
    server.always["w.pth"] = redirect("/w.pth")
    assert "redirected more than 10 times" in refusal(server, tmp_path)
    assert len(server.asked) == 11


def test_a_redirect_to_a_file_is_refused(server: Server, tmp_path: Path) -> None:
    secret = tmp_path.with_name("secret.pth")
    secret.write_bytes(BODY)
    server.always["w.pth"] = redirect(secret.as_uri())
    assert "redirected to file:///" in refusal(server, tmp_path)


def test_https_never_becomes_http(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    real = requests.get
    monkeypatch.setattr(requests, "get", lambda url, **kw: real(url.replace("https://zoo.test", server.base), **kw))
    server.always["a.pth"] = redirect(server.url("w.pth"))
    for allow_http in (False, True):
        with pytest.raises(DownloadError, match=f"redirected to {server.url('w.pth')}; only https"):
            download([Source("https://zoo.test/a.pth", allow_http)], tmp_path / "w.pth")
    with pytest.raises(DownloadError, match="not https"):
        download([Source(server.url("w.pth"))], tmp_path / "w.pth")
    assert {asked.path for asked in server.asked} == {"a.pth"}
    server.always["a.pth"] = redirect("https://zoo.test/w.pth")
    assert download([Source(server.url("a.pth"), allow_http=True)], tmp_path / "w.pth").sha256 == SHA256


# --- attempts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "stall"])
def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path, how: str) -> None:
    server.plan["w.pth"] = [serve(stop=90_000, how=how), serve(stop=60_000, how=how)]
    assert get(server, tmp_path, sha256=SHA256).size == len(BODY)
    starts = [asked.start for asked in server.asked]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert len(starts) == 3
    assert {asked.headers["if-range"] for asked in server.asked[1:]} == {'"v1"'}


def test_within_one_call_no_validator_is_needed(server: Server, tmp_path: Path) -> None:
    server.plan["w.pth"] = [serve(stop=90_000, etag=None), serve(etag=None)]
    get(server, tmp_path, sha256=SHA256)
    assert server.asked[1].start > 80_000
    assert "if-range" not in server.asked[1].headers


@pytest.mark.parametrize(
    "second",
    [serve(ranges=False), serve(etag='"v2"'), wrong_range(-10), wrong_range(10), status(416)],
    ids=["no ranges", "other etag", "range too early", "range too late", "416"],
)
def test_an_answer_that_does_not_continue_the_file_starts_it_again(server: Server, tmp_path: Path, second: Any) -> None:
    server.plan["w.pth"] = [serve(stop=90_000), second]
    assert get(server, tmp_path).sha256 == SHA256


def test_a_206_of_another_version_starts_again_even_when_if_range_is_ignored(server: Server, tmp_path: Path) -> None:
    other = zip_payload(200_000, seed=1)

    def ignores_if_range(handler: Any, body: bytes) -> None:
        head = {"ETag": '"v2"', "Content-Range": f"bytes {handler.asked.start}-{len(other) - 1}/{len(other)}"}
        rest = other[handler.asked.start :]
        handler.answer(206, head | {"Content-Length": str(len(rest))}, rest)

    server.plan["w.pth"] = [serve(stop=90_000), ignores_if_range]
    assert get(server, tmp_path).path.read_bytes() == BODY


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_errors_are_retried(server: Server, tmp_path: Path, code: int) -> None:
    server.plan["w.pth"] = [status(code), status(code)]
    assert get(server, tmp_path).sha256 == SHA256


def test_lasting_errors_are_given_up(server: Server, tmp_path: Path) -> None:
    server.always["w.pth"] = status(503)
    assert "HTTP 503 Service Unavailable; gave up after 4 attempts" in refusal(server, tmp_path)


def test_retry_after_is_obeyed_and_capped(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    far = "Fri, 31 Dec 2100 23:59:59 GMT"
    past = "Mon, 01 Jan 2001 00:00:00 GMT"
    for value, pause in (("7", 7), ("99999", 120), (far, 120), (past, 0)):
        server.plan["w.pth"] = [status(429, Retry_After=value)]
        get(server, tmp_path)
        assert pauses == [pause]
        pauses.clear()
    server.plan["w.pth"] = [status(503, Retry_After="soon")]
    get(server, tmp_path)
    assert 0 < pauses[0] <= module.BACKOFF


def test_waits_grow(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(module, "BACKOFF", 1.0)
    server.always["w.pth"] = status(500)
    refusal(server, tmp_path)
    assert [0.5 * 2**i <= pause <= 2**i for i, pause in enumerate(pauses)] == [True] * 3


def test_a_server_that_drops_every_connection_early_has_a_bound(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 50)
    server.always["w.pth"] = serve(stop=100)
    assert "gave up after 64 attempts" in refusal(server, tmp_path)
    assert server.sent == 6400


def test_attempts_that_bring_bytes_are_counted_less(server: Server, tmp_path: Path) -> None:
    server.always["w.pth"] = serve(stop=10_000)
    assert get(server, tmp_path).sha256 == SHA256
    assert len(server.asked) > 2 * module.PATIENCE


# --- length -------------------------------------------------------------------------------------


def test_a_length_that_is_too_large_is_noticed(server: Server, tmp_path: Path) -> None:
    server.always["w.pth"] = serve(announce=len(BODY) + 10, ranges=False)
    assert f"broke off after {len(BODY)} bytes; gave up after 5 attempts" in refusal(server, tmp_path)


def test_a_length_that_is_too_small_is_noticed(server: Server, tmp_path: Path) -> None:
    server.always["w.pth"] = serve(announce=len(BODY) - 10)
    assert "zip file without its end" in refusal(server, tmp_path)


def test_another_length_than_expected_is_refused_before_the_body(server: Server, tmp_path: Path) -> None:
    assert f"announces {len(BODY)} bytes, expected {10 * len(BODY)}" in refusal(server, tmp_path, size=10 * len(BODY))
    assert len(server.asked) == 1


def test_a_body_without_end_is_cut_off(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.always["w.pth"] = endless()
    assert "goes on beyond 1000 bytes" in refusal(server, tmp_path, size=1000)
    monkeypatch.setattr(partial, "MAX_UNPUBLISHED", 50_000)
    assert "beyond 50000 bytes, the most that is taken when nobody says how many" in refusal(server, tmp_path)


# --- what is not a weight file ------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"\n <html><body>Not here</body>", "a web page beginning '<html>"),
        (LFS, "a Git LFS pointer beginning 'version https://git-lfs"),
        (b'{"error": "rate limit"}', 'JSON beginning \'{"error"'),
        (b"", "an empty file"),
        (b"\x00" * 40, r"a file beginning b'\x00"),
        (BODY[:5000], "a zip file without its end"),
        (struct.pack("<Q", 30) + b'{"a":{"data_offsets":[0,8]}}  ' + b"1234", "42 bytes whose header announces 46"),
        (struct.pack("<Q", 5) + b"{oops", "a safetensors file with a broken header"),
    ],
)
def test_other_files_are_quoted_and_refused(server: Server, tmp_path: Path, body: bytes, found: str) -> None:
    server.always["w.pth"] = send(body)
    assert found in refusal(server, tmp_path)
    assert len(server.asked) == 1


def test_all_three_kinds_of_weight_files_pass(tmp_path: Path) -> None:
    safetensors = struct.pack("<Q", 30) + b'{"a":{"data_offsets":[0,4]}}  ' + b"1234"
    for body in (BODY, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", safetensors):
        (tmp_path / "w").write_bytes(body)
        check_weight_file(tmp_path / "w")


def test_a_compressed_answer_is_refused(server: Server, tmp_path: Path) -> None:
    server.always["w.pth"] = send(b"\x1f\x8b rest", Content_Encoding="gzip")
    assert "Content-Encoding gzip" in refusal(server, tmp_path)


# --- across processes ---------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from zoo_seg.hub import download as module
from zoo_seg.hub.files import exclusive
module.CHUNK = 4096
folder = Path(sys.argv[2])
with exclusive(folder / ".lock") as alone:
    module.download([module.Source(sys.argv[1], allow_http=True)], folder / "w.pth", resume=alone)
"""


def kill_in_mid_download(server: Server, folder: Path, **options: Any) -> int:
    """Let another process fetch about half of the file, kill it, and return how many bytes it kept."""
    server.plan["w.pth"].append(serve(stop=100_000, how="stall", **options))
    child = subprocess.Popen([sys.executable, "-c", CHILD, server.url("w.pth"), str(folder)])
    try:
        deadline = time.monotonic() + 20
        while sum(_size(part) for part in folder.glob("*.part")) < 90_000:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    return sum(_size(part) for part in folder.glob("*.part"))


def _size(part: Path) -> int:
    with suppress(FileNotFoundError):  # it may be begun anew at this moment
        return part.stat().st_size
    return 0


def finish(server: Server, folder: Path) -> Downloaded:
    with exclusive(folder / ".lock") as alone:
        got = get(server, folder, sha256=SHA256, resume=alone)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "w.pth"]
    return got


def test_a_killed_download_is_resumed_by_the_next_process(server: Server, tmp_path: Path) -> None:
    kept = kill_in_mid_download(server, tmp_path)
    assert finish(server, tmp_path).etag == '"v1"'
    assert [asked.start for asked in server.asked] == [0, kept]
    assert server.asked[1].headers["if-range"] == '"v1"'
    assert server.sent < 1.1 * len(BODY)


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_strong_validator_nothing_is_resumed(server: Server, tmp_path: Path, etag: str | None) -> None:
    kill_in_mid_download(server, tmp_path, etag=etag)
    with exclusive(tmp_path / ".lock") as alone:
        get(server, tmp_path, sha256=SHA256, resume=alone)
    assert [asked.start for asked in server.asked] == [0, 0]


def test_an_old_modification_date_is_a_strong_validator(server: Server, tmp_path: Path) -> None:
    modified = {"Last-Modified": "Sun, 01 Jan 2023 00:00:00 GMT"}
    kept = kill_in_mid_download(server, tmp_path, etag=None, headers=modified)
    server.plan["w.pth"] = [serve(etag=modified["Last-Modified"])]
    finish(server, tmp_path)
    assert server.asked[1].start == kept
    assert server.asked[1].headers["if-range"] == modified["Last-Modified"]


def test_a_file_that_changed_since_is_fetched_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.files["w.pth"] = zip_payload(200_000, seed=2)
    kill_in_mid_download(server, tmp_path)
    server.files["w.pth"], server.etags["w.pth"] = BODY, '"v2"'
    finish(server, tmp_path)


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"claimed": SHA256[:8]}, {}], ids=["sha256", "digits", "crc"])
def test_what_was_kept_and_is_spoiled_costs_a_second_download(
    server: Server, tmp_path: Path, known: dict[str, str]
) -> None:
    kill_in_mid_download(server, tmp_path)
    part = next(tmp_path.glob("*.part"))
    with part.open("rb+") as file:
        file.seek(5000)
        file.write(b"spoiled")
    with exclusive(tmp_path / ".lock") as alone:
        assert get(server, tmp_path, resume=alone, **known).sha256 == SHA256
    assert [asked.start > 0 for asked in server.asked] == [False, True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "w.pth"]


def test_joined_bytes_that_stay_wrong_are_refused(server: Server, tmp_path: Path) -> None:
    server.files["w.pth"] = zip_payload(200_000, seed=1)
    kill_in_mid_download(server, tmp_path)
    with pytest.raises(HashMismatchError), exclusive(tmp_path / ".lock") as alone:
        get(server, tmp_path, sha256=SHA256, resume=alone)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert len(server.asked) == 3


def test_a_complete_leftover_needs_no_request(server: Server, tmp_path: Path) -> None:
    kill_in_mid_download(server, tmp_path)
    next(tmp_path.glob("*.part")).write_bytes(BODY)
    finish(server, tmp_path)
    assert len(server.asked) == 1


def test_leftovers_of_others_are_left_alone(server: Server, tmp_path: Path) -> None:
    """A partial without a note may belong to a living process that has no lock."""
    alien = tmp_path / f"w.pth.{'a' * 12}.part"
    alien.write_bytes(BODY[:1000])
    broken = tmp_path / f"w.pth.{'b' * 12}.part"
    broken.write_bytes(BODY[:1000])
    broken.with_name(f"{broken.name}.json").write_text('{"url": "https://elsewhere/w.pth"')
    with exclusive(tmp_path / ".lock") as alone:
        get(server, tmp_path, sha256=SHA256, resume=alone)
    assert [asked.start for asked in server.asked] == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "w.pth", alien.name]
    assert alien.read_bytes() == BODY[:1000]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, size: int, error: BaseException) -> None:
    append = partial.Partial.append

    def interrupted(self: partial.Partial, chunk: bytes) -> None:
        if self.size >= size:
            raise error
        append(self, chunk)

    monkeypatch.setattr(partial.Partial, "append", interrupted)


@pytest.mark.parametrize("resume", [True, False])
def test_ctrl_c_keeps_what_the_next_run_can_use(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 40_960, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            get(server, tmp_path, resume=resume)
    assert len(list(tmp_path.iterdir())) == (2 if resume else 0)
    kept = sum(_size(part) for part in tmp_path.glob("*.part"))
    if resume:
        assert json.loads(next(tmp_path.glob("*.part.json")).read_text())["validator"] == '"v1"'
        assert kept >= 40_960
    assert get(server, tmp_path, sha256=SHA256, resume=resume).size == len(BODY)
    assert server.asked[1].start == kept
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_a_source_that_fails_for_now_keeps_its_part(server: Server, tmp_path: Path) -> None:
    server.plan["w.pth"] = [serve(stop=90_000), *[status(503)] * 4]
    with pytest.raises(DownloadError, match="503"):
        get(server, tmp_path, resume=True)
    assert get(server, tmp_path, resume=True).sha256 == SHA256
    assert server.asked[-1].start > 80_000


def test_a_full_disk_says_how_much_is_missing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(monkeypatch, 40_960, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DownloadError, match=rf"disk is full: w.pth needs 15\d{{4}} more bytes in {tmp_path}"):
        get(server, tmp_path, resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot write in .*ZOO_SEG_HOME"):
        get(server, tmp_path / "missing")


def test_without_locks_all_goes_on(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    def acquire(self: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with exclusive(tmp_path / ".lock") as alone:
        assert not alone
        assert get(server, tmp_path, resume=alone).sha256 == SHA256


def test_replacing_leaves_the_old_file_when_the_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.write_text((tmp_path / "missing").read_text())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_loading_the_modules_imports_nothing_heavy() -> None:
    heavy = {"torch", "requests", "filelock", "tqdm", "huggingface_hub"}
    code = f"import sys, zoo_seg.hub.cache; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
