"""Tokens, passwords and signatures: they go to the host they are meant for and appear nowhere else."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from conftest import REPOSITORY, Zoo, toy_manifest
from helpers.servers import Server, redirect, status
from safetensors.torch import save

from zoo_seg.cli.main import main
from zoo_seg.errors import ZooSegError
from zoo_seg.hub import cache, download
from zoo_seg.hub.download import Source

SECRET = "s3cret"
WEIGHTS = save({"head.a": torch.zeros(4)})


class Host(ThreadingHTTPServer):
    """Answers with `answer(path, headers)` = (status, headers, body), and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        super().__exit__(*exception)


class _Handler(BaseHTTPRequestHandler):
    server: Host

    def _answer(self) -> None:
        self.server.asked.append((self.command, self.path, {key.lower(): value for key, value in self.headers.items()}))
        code, headers, body = self.server.answers.get(self.path.split("?")[0], (404, {}, b""))
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD = _answer

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """A hub, and the host that it sends on to."""
    with Host() as hub, Host() as store:
        yield hub, store


FETCH = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from zoo_seg.hub import cache
print(cache.fetch_link("hf://org/repo/a.safetensors").path.read_bytes()[:8])
"""


def test_a_token_of_the_hub_stays_there(hosts: tuple[Host, Host], tmp_path: Path, home: Path) -> None:
    hub, store = hosts
    where = f"http://localhost:{store.server_port}/store/a?X-Signature={SECRET}"
    facts = {"X-Repo-Commit": "a" * 40, "X-Linked-Etag": '"e"', "X-Linked-Size": str(len(WEIGHTS)), "ETag": '"e"'}
    hub.answers["/org/repo/resolve/main/a.safetensors"] = 302, {"Location": where, **facts}, b""
    store.answers["/store/a"] = 200, {"ETag": '"e"'}, WEIGHTS
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": f"hf_{SECRET}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(REPOSITORY),
        "CLAUDECODE": "1",  # an agent, which the client would tell the Hub of
    }
    result = subprocess.run(
        [sys.executable, "-c", FETCH], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert repr(WEIGHTS[:8]) in result.stdout
    assert hub.asked
    assert all(headers.get("authorization") == f"Bearer hf_{SECRET}" for _, _, headers in hub.asked)
    assert store.asked
    assert not any("authorization" in headers for _, _, headers in store.asked)
    assert SECRET not in result.stderr
    ours = [line for line in result.stdout.splitlines() if ":zoo_seg" in line]
    assert not any(SECRET in line for line in ours)
    assert not any(SECRET in path.read_text(encoding="latin1") for path in home.rglob("*") if path.is_file())
    for _, path, headers in hub.asked + store.asked:
        assert path.startswith(("/org/repo/resolve/main/a.safetensors", "/store/a"))  # nothing else is told
        assert not {"torch", "agent", "timm"} & {
            part.split("/")[0].strip() for part in headers["user-agent"].split(";")
        }


# --- links --------------------------------------------------------------------------------------

LINKS = [
    f"https://user:{SECRET}@zoo.test/w.pth?signature={SECRET}",
    f"https://zoo.test/w.safetensors?X-Amz-Signature={SECRET}#{SECRET}",
]
FAULTS: dict[str, Any] = {
    "gone": status(404),
    "forbidden": status(403),
    "busy": status(503),
    "circle": redirect(LINKS[0]),
    "plain http": redirect(f"http://user:{SECRET}@elsewhere.test/w.pth?signature={SECRET}"),
    "a file": redirect("file:///etc/passwd"),
    "no port": redirect(f"https://user:{SECRET}@elsewhere.test:port/w.pth"),
    "no address": redirect(f"https://user:{SECRET}@[elsewhere/w.pth"),
    "no host": redirect(f"https://user:{SECRET}@/w.pth"),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Every https host."""
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    real = requests.get

    def get(url: str, **options: Any) -> requests.Response:
        if "zoo.test" in url:
            path = url.partition("zoo.test/")[2]
            return real(server.url(path), **options)
        return real(url, **options)

    with Server() as server:
        monkeypatch.setattr(requests, "get", get)
        yield server


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("link", LINKS, ids=["password", "signature"])
def test_no_message_holds_a_secret(
    link: str, fault: str, server: Server, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("w.pth", "w.safetensors"):
        for query in (f"?signature={SECRET}", f"?X-Amz-Signature={SECRET}", ""):
            server.always[name + query] = FAULTS[fault]
    caplog.set_level(logging.DEBUG, "zoo_seg")
    with pytest.raises(ZooSegError) as caught:
        cache.fetch_link(link)
    assert "zoo.test/w." in str(caught.value)
    assert SECRET not in str(caught.value) + caplog.text


def test_what_is_kept_of_a_download_holds_no_secret(
    server: Server, home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "zoo_seg")
    server.files["w.safetensors"] = WEIGHTS
    path = cache.fetch_link(LINKS[1]).path
    record = cache.read_record(path)
    assert record is not None
    assert record.url == "https://zoo.test/w.safetensors"
    assert main(["verify"]) == 0
    kept = "".join(f"{each}{each.read_text(encoding='latin1')}" for each in home.rglob("*") if each.is_file())
    assert SECRET not in kept + capsys.readouterr().out + caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "image.jpg", "--weights", LINKS[1]],
        ["predict", "image.jpg", "--weights", LINKS[0], "--model", "fcn_resnet50_os8"],
        ["evaluate", "--data", "nowhere", "--weights", LINKS[1]],
        ["finetune", "--data", "nowhere", "--out", "run", "--weights", LINKS[1]],
    ],
)
def test_the_command_line_repeats_no_secret(
    arguments: list[str],
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) > 0
    printed = capsys.readouterr()
    assert printed.err
    assert SECRET not in printed.out + printed.err


def test_a_network_tells_where_its_training_started_without_secrets(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    from zoo_seg.data.files import OWN
    from zoo_seg.data.labels import Labels
    from zoo_seg.data.layouts import SegmentationData
    from zoo_seg.info import voc_palette
    from zoo_seg.training.start import _from_weights

    server.files["w.pth"] = (zoo.mirror / "toys.pth").read_bytes()
    data = SegmentationData(tmp_path, "folder", Labels(tuple("abc"), voc_palette(3), 255), OWN)
    _, origin = _from_weights(data, "toy_r50", LINKS[0])
    assert origin == "https://zoo.test/w.pth"


def test_a_password_stays_with_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that in a link nor that of the user's .netrc is sent to where a redirect leads."""
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1\nlogin user\npassword {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Host() as first, Host() as other:
        where = f"http://localhost:{other.server_port}/w.safetensors"
        first.answers["/w.safetensors"] = 302, {"Location": where}, b""
        other.answers["/w.safetensors"] = 200, {}, WEIGHTS
        link = f"http://user:{SECRET}@127.0.0.1:{first.server_port}/w.safetensors"
        got = download.download([Source(link, allow_http=True)], tmp_path / "w.safetensors")
        assert SECRET not in got.url
        assert [headers["authorization"][:6] for _, _, headers in first.asked] == ["Basic "]
        assert [headers.get("authorization") for _, _, headers in other.asked] == [None]


def test_info_tells_the_hosts_and_no_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_SEG_MIRROR", f"https://user:{SECRET}@mirror.test/zoo?key={SECRET}")
    assert main(["info", "semanticfpn_resnet50.voc_ssseg"]) == 0
    printed = capsys.readouterr().out
    assert "hosts asked       https://mirror.test/zoo, github.com" in printed
    assert SECRET not in printed


def test_info_tells_where_the_hub_is(
    zoo: Zoo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raw = toy_manifest()
    file = raw["weights"]["toy_r50.toys_me"]["files"][0]
    file["url"], file["mirrors"] = "hf://org/repo/toys.pth", ["file:///somewhere/toys.pth"]
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(tmp_path / "mine.json"))
    monkeypatch.delenv("ZOO_SEG_MIRROR", raising=False)
    for endpoint, host in (("", "huggingface.co"), ("https://mirror.test:8000/hf", "mirror.test")):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert main(["info", "toy_r50.toys_me"]) == 0
        assert f"hosts asked       {host}, none (a file of this machine)" in capsys.readouterr().out
