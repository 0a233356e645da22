"""`zoo-seg manifest`: what is behind the links of a manifest, recorded in it, and proven of a mirror."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from conftest import Zoo, toy_manifest
from helpers.reference import Key, checkpoint, keys, state_dict
from safetensors.torch import save_file

import zoo_seg
from zoo_seg.checkpoints.convert import convert
from zoo_seg.checkpoints.digest import tensors_sha256
from zoo_seg.checkpoints.opening import open_checkpoint
from zoo_seg.checkpoints.pin import file_tensors_sha256, insert
from zoo_seg.cli.main import main
from zoo_seg.errors import CheckpointError
from zoo_seg.hub import links
from zoo_seg.manifest import get_architecture, published_manifest, read_manifest

# --- the digest ---------------------------------------------------------------------------------


def test_the_digest_is_what_its_definition_says() -> None:
    tensors = {
        "head.b": torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 9.0]]).t(),  # not contiguous
        "head.a": torch.tensor(7),  # an integer
        "head.ü\n": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    }
    each = [
        b'["float32",[2,3]]\n' + struct.pack("<6f", 1, 0.5, 0, -2, 3, 9),
        b'["bfloat16",[2]]\n' + struct.pack("<2H", 0x3F80, 0x4000),
    ]
    lines = sorted(f"{hashlib.sha256(one).hexdigest()}\n" for one in each)
    assert tensors_sha256(tensors) == hashlib.sha256("".join(lines).encode()).hexdigest()


MODEL = "pspnet_resnet50_os16"
PSPNET = [key for key in keys("ssseg", "pspnet_resnet50_os16_voc") if not key[0].startswith("backbone_net.layer")]


def small(key_list: list[Key]) -> list[Key]:
    """The same names with narrow shapes, of which the pyramid still makes sense."""
    return [(name, tuple(max(side // 64, 1) if side > 7 else side for side in shape)) for name, shape in key_list]


def test_one_digest_for_every_container(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zip_ = checkpoint(tmp_path / "zip.pth", small(PSPNET), layout="ssseg")
    legacy = checkpoint(tmp_path / "legacy.pth", small(PSPNET), layout="ssseg", legacy=True)
    tensors = state_dict(small(PSPNET))
    torch.save(dict(reversed(tensors.items())), tmp_path / "bare and reversed.pth")
    renamed = convert(tensors, get_architecture(MODEL)[1]).tensors
    assert "head.taps.0.weight" in renamed
    save_file({name: value.contiguous() for name, value in renamed.items()}, tmp_path / "ours.safetensors")
    files = [zip_, legacy, tmp_path / "bare and reversed.pth", tmp_path / "ours.safetensors"]
    assert main(["manifest", "digest", "--model", MODEL, *map(str, files)]) == 0
    printed = capsys.readouterr().out
    (digest,) = set(re.findall(r"tensors  ([0-9a-f]{64})", printed))
    assert digest == file_tensors_sha256(zip_, get_architecture(MODEL)[1])
    assert printed.endswith("\nthe same tensors\n")
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == re.findall(r"sha256   (\w+)", printed)


@pytest.mark.parametrize("change", ["a value", "a shape", "a type", "one more"])
def test_other_tensors_have_another_digest(change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"head.a": torch.arange(6.0), "head.b": torch.zeros(2)}
    save_file(tensors, tmp_path / "one.safetensors")
    if change == "a value":
        tensors["head.a"][5] = 5.0000005
    elif change == "a shape":
        tensors["head.a"] = tensors["head.a"].reshape(2, 3)
    elif change == "a type":
        tensors["head.a"] = tensors["head.a"].half()
    else:
        tensors["head.c"] = torch.zeros(1)
    save_file(tensors, tmp_path / "other.safetensors")
    assert main(["manifest", "digest", str(tmp_path / "one.safetensors"), str(tmp_path / "other.safetensors")]) == 1
    assert capsys.readouterr().out.endswith("\nDIFFERENT tensors\n")


def test_a_file_that_is_none_has_no_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.pth").write_bytes(b"<html>")
    assert main(["manifest", "digest", str(tmp_path / "page.pth")]) == 1
    assert main(["manifest", "digest", str(tmp_path / "none.pth")]) == 1
    assert "expected a torch checkpoint" in capsys.readouterr().err


# --- pin ----------------------------------------------------------------------------------------

ID = "toy_r50.toys_me"


@pytest.fixture
def own(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of two weights whose links are files beside it; nothing of it is known to the library."""
    monkeypatch.delenv("ZOO_SEG_MANIFEST")
    monkeypatch.delenv("ZOO_SEG_MIRROR")
    shutil.copytree(zoo.mirror, tmp_path / "site")
    raw = toy_manifest()
    for name in ("toys", "games"):
        path = tmp_path / "site" / f"{name}.pth"
        raw["weights"][f"toy_r50.{name}_me"]["files"] = [{"url": path.as_uri(), "size": None, "sha256": None}]
    manifest = tmp_path / "mine.json"
    # Its own way of writing: Windows line ends, wide indents, long lines, no newline at the end, letters of all kinds.
    text = json.dumps(raw, indent=3, ensure_ascii=False).replace('"Toys"', '"Spielzeug für Ä\U0001f600"')
    text = re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+)\s+\]", r"[ \1,\2,\t\3 ]", text)
    manifest.write_bytes(text.replace("\n", "\r\n").encode())
    return manifest


def pin(manifest: Path, *ids: str) -> int:
    return main(["manifest", "pin", *(ids or (ID,)), "--manifest", str(manifest)])


def test_pin_writes_what_it_found_and_nothing_else(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = own.parent / "site" / "toys.pth"
    sha256, digest = hashlib.sha256(file.read_bytes()).hexdigest(), file_tensors_sha256(file, None)
    before = own.read_bytes()
    own.chmod(0o640)
    assert pin(own) == 0
    printed = capsys.readouterr().out
    assert f"size     {file.stat().st_size} (new)" in printed
    assert f"sha256   {sha256} (new)" in printed
    assert f"tensors  {digest} (new)" in printed
    assert "3 values written" in printed
    assert file.as_uri() in printed
    indent = " " * 15
    edited = [
        (f'{indent}"size": null,', f'{indent}"size": {file.stat().st_size},'),
        (f'{indent}"sha256": null', f'{indent}"sha256": "{sha256}",\r\n{indent}"tensors_sha256": "{digest}"'),
    ]
    expected = before.decode()
    for old, new in edited:
        expected = expected.replace(old, new, 1)
    assert own.read_bytes().decode() == expected
    assert own.stat().st_mode & 0o777 == 0o640
    assert sorted(each.name for each in own.parent.iterdir()) == [
        "mine.json",
        "site",
    ]
    record = read_manifest(own, read_manifest(published_manifest())).weights[ID]
    assert (record.files[0].size, record.files[0].sha256, record.tensors_sha256) == (
        file.stat().st_size,
        sha256,
        digest,
    )

    again = own.read_bytes()
    assert pin(own) == 0
    printed = capsys.readouterr().out
    assert "(new)" not in printed
    assert printed.count("(as recorded)") == 3
    assert "nothing to write" in printed
    assert own.read_bytes() == again
    assert pin(own, ID, "toy_r50.games_me") == 0
    assert own.read_bytes().count(b"tensors_sha256") == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"url": "u"}', '{"url": "u", "size": 5, "sha256": "s", "tensors_sha256": "t"}'),
        ('{"sha256":null,"url":"u"}', '{"sha256":"s","tensors_sha256":"t","url":"u","size":5}'),
        (
            '{"path": "p", "other_paths": ["q"], "sha256_prefix_claimed": "c"}',
            '{"path": "p", "other_paths": ["q"], "size": 5, "sha256": "s", "tensors_sha256": "t", '
            '"sha256_prefix_claimed": "c"}',
        ),
        ('{"url": "u", "size": null, "x": 1}', '{"url": "u", "size": 5, "sha256": "s", "tensors_sha256": "t", "x": 1}'),
        (
            '{ "tensors_sha256" : null\n, "url" : "a \\"sha256\\": null" }',
            '{ "tensors_sha256" : "t"\n, "url" : "a \\"sha256\\": null", "size" : 5, "sha256" : "s" }',
        ),
        (
            '{\n\t"url": "u",\n\t"x": ["url", {"url": 1}]\n}',
            '{\n\t"url": "u",\n\t"size": 5,\n\t"sha256": "s",\n\t"tensors_sha256": "t",\n\t"x": ["url", {"url": 1}]\n}',
        ),
    ],
)
def test_values_are_put_in_their_place(before: str, after: str) -> None:
    values = {"size": 5, "sha256": "s", "tensors_sha256": "t"}
    for wrap in ('{{"a": [1, {}], "b": 2}}', '\ufeff{{"x": {{"a": {{}}}}, "a": ["{{", {}]}}'):
        text = wrap.format(before).lstrip("\ufeff")
        assert insert(text, ("a", 1), values) == wrap.format(after).lstrip("\ufeff")


def test_the_library_s_own_manifest_changes_in_one_place() -> None:
    text = published_manifest().read_bytes().decode()
    record = zoo_seg.get_weights("pspnet_resnet101_os8.ade20k_ssseg")
    edited = insert(
        text, ("weights", record.id, "files", 0), {"size": 1, "sha256": "a" * 64, "tensors_sha256": "b" * 64}
    )
    old, new = text.split("\n"), edited.split("\n")
    start = next(i for i, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
    assert f'"{record.id}": {{' in "\n".join(old[start - 15 : start])
    assert new[start : start + 4] == [
        old[start] + ",",
        '          "size": 1,',
        f'          "sha256": "{"a" * 64}",',
        f'          "tensors_sha256": "{"b" * 64}"',
    ]
    assert new[:start] + old[start : start + 1] + new[start + 4 :] == old


def edit(manifest: Path, **fields: Any) -> None:
    raw = json.loads(manifest.read_text(encoding="utf-8"))
    raw["weights"][ID]["files"][0].update(fields)
    manifest.write_text(json.dumps(raw), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sha256": "a" * 64}, "expected sha256 aaaa"),
        ({"size": 5}, "beyond 5 bytes"),
        ({"tensors_sha256": "b" * 64}, "holds other tensors than toy_r50.toys_me: expected the digest bbbb"),
        ({"url": "file:///nowhere/toys.pth"}, "No such file"),
    ],
)
def test_what_is_recorded_is_never_replaced(
    own: Path, fields: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(own, **fields)
    before = own.read_bytes()
    assert pin(own) == 1
    assert says in capsys.readouterr().err
    assert own.read_bytes() == before


@pytest.mark.parametrize("holds", [True, False])
def test_pin_tells_whether_the_publisher_s_digits_hold(
    own: Path, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sha256 = hashlib.sha256((own.parent / "site" / "toys.pth").read_bytes()).hexdigest()
    edit(own, sha256_prefix_claimed=sha256[:8] if holds else "00000000")
    assert pin(own) == 0
    printed = capsys.readouterr().out
    assert (f"digits {sha256[:8]} hold\n" if holds else "digits 00000000 DO NOT HOLD") in printed


def test_a_file_from_elsewhere_is_not_pinned(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(own.parent / "site", own.parent / "mirror")
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(own.parent / "mirror"))
    before = own.read_bytes()
    assert pin(own) == 1
    assert "mirror/toys.pth, not from a published link" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_a_broken_network_is_not_pinned(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own.parent / "site" / "toys.pth"
    tensors = torch.load(path, weights_only=True)["model"]
    tensors["head.classifier.bias"][1] = float("nan")
    torch.save(tensors, path)
    before = own.read_bytes()
    assert pin(own) == 1
    assert "'head.classifier.bias' are NaN" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_an_unknown_id(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pin(own, "toy_r50.toy_me") == 2
    assert "did you mean 'toy_r50.toys_me'" in capsys.readouterr().err
    assert pin(own, "fcn_resnet50_os8.voc_ssseg") == 2  # of the library's manifest, not of this


# --- the digest in use --------------------------------------------------------------------------


def test_a_mirror_in_another_container_is_held_to_the_digest(
    own: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = own.parent / "site"
    tensors = {name: value.clone() for name, value in open_checkpoint(site / "toys.pth")[0].items()}
    save_file(dict(tensors), site / "toys.safetensors")
    raw = json.loads(own.read_text(encoding="utf-8"))
    digest = file_tensors_sha256(site / "toys.pth", None)
    raw["weights"][ID]["files"] = [
        {"url": "file:///nowhere/toys.pth", "tensors_sha256": digest},
        {"url": (site / "toys.safetensors").as_uri()},
    ]
    own.write_text(json.dumps(raw), encoding="utf-8")
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(own))
    model = zoo_seg.create_model("toy_r50", "toys")
    assert torch.equal(model.state_dict()["head.classifier.bias"], tensors["head.classifier.bias"])

    shutil.rmtree(home)
    tensors["head.classifier.bias"] = tensors["head.classifier.bias"] + 1
    save_file(dict(tensors), site / "toys.safetensors")
    with pytest.raises(CheckpointError, match=f"holds other tensors than were published: expected the digest {digest}"):
        zoo_seg.create_model("toy_r50", "toys")
    shutil.move(site / "toys.safetensors", site / "other.safetensors")
    torch.save(dict(tensors), site / "toys.pth")
    raw["weights"][ID]["files"] = [{"url": (site / "toys.pth").as_uri(), "tensors_sha256": digest}]
    own.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds other tensors than were published"):
        zoo_seg.create_model("toy_r50", "toys")
    assert not list(home.rglob("*.pth.*.safetensors"))  # and no copy of them is kept


# --- check --------------------------------------------------------------------------------------


class Site(ThreadingHTTPServer):
    """Answers HEAD (and GET) with what `answers[path]` says: (status, headers), or nothing for a while."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, dict[str, str]] | None] = {}
        self.heads: dict[str, tuple[int, dict[str, str]]] = {}
        self.asked: list[tuple[str, str]] = []
        self.busy = self.most = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        super().__exit__(*exception)


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def _answer(self) -> None:
        with self.server.lock:
            self.server.asked.append((self.command, self.path))
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
        time.sleep(0.05)
        with self.server.lock:
            self.server.busy -= 1
        path = self.path.split("?")[0]
        found = self.server.answers.get(path, (404, {}))
        if self.command == "HEAD":
            found = self.server.heads.get(path, found)
        if found is None:
            time.sleep(3)
            return
        self.send_response(found[0])
        for key, value in {"Content-Length": "0", **found[1]}.items():
            self.send_header(key, value)
        self.end_headers()

    do_GET = do_HEAD = _answer

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Is `https://zoo.test` and `https://store.test`."""
    real = requests.request

    def request(method: str, url: str, **options: Any) -> requests.Response:
        return real(
            method, re.sub(r"https://(zoo|store)\.test", f"http://127.0.0.1:{site.server_port}", url), **options
        )

    with Site() as site:
        monkeypatch.setattr(requests, "request", request)
        yield site


ANSWERS = {
    "fine": ((200, {"Content-Length": "1000"}), True, "HTTP 200", 1000),
    "no length": ((200, {"Content-Length": "x"}), True, "HTTP 200", None),
    "gone": ((404, {}), False, "HTTP 404", None),
    "busy": ((503, {}), False, "HTTP 503", None),
    "page": ((200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": "5"}), False, "a web page", None),
    "moved": ((302, {"Location": "https://store.test/fine?signature=s3cret"}), True, "HTTP 200", 1000),
    "to http": ((302, {"Location": "http://store.test/fine?signature=s3cret"}), False, "only https", None),
    "to a file": ((301, {"Location": "file:///etc/passwd"}), False, "only https", None),
    "circle": ((302, {"Location": "https://zoo.test/circle"}), False, "more than 10 times", None),
    "silent": (None, False, "no answer in time", None),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_link_says(name: str, site: Site) -> None:
    answer, ok, status, size = ANSWERS[name]
    site.answers = {"/fine": (200, {"Content-Length": "1000"}), "/" + name.replace(" ", "_"): answer}
    found = links.ask(f"https://zoo.test/{name.replace(' ', '_')}", timeout=0.5)
    assert (found.ok, found.size) == (ok, size)
    assert status in found.status
    assert "s3cret" not in found.status
    assert {method for method, _ in site.asked} == {"HEAD"}


def test_a_server_without_head_is_asked_for_its_first_bytes_only(site: Site) -> None:
    for code in (403, 405, 501):
        site.heads["/x"], site.answers["/x"] = (code, {}), (200, {"Content-Length": "77"})
        found = links.ask("https://zoo.test/x")
        assert found.ok
        assert found.size == 77
    site.answers["/x"] = 403, {}
    assert links.ask("https://zoo.test/x").status == "HTTP 403"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("https://nowhere.invalid/x.pth", "no connection"),
        ("https://127.0.0.1:1/x.pth", "no connection"),
        ("https://[bad/x.pth", "Invalid IPv6 URL"),
        ("file:///nowhere/x.pth", "No such file or directory"),
        ("package://none.safetensors", "No such file or directory"),
        ("hf://nothing", "expected hf://"),
    ],
)
def test_a_link_without_answer(url: str, status: str) -> None:
    answer = links.ask(url, timeout=2)
    assert not answer.ok
    assert status in answer.status


def check(manifest: Path, *arguments: str) -> int:
    return main(["manifest", "check", "--manifest", str(manifest), "--timeout", "2", *arguments])


@pytest.fixture
def linked(tmp_path: Path, site: Site) -> Path:
    """A manifest of one set of weights with a mirror that answers, and one without."""
    raw = toy_manifest()
    first, second = (raw["weights"][f"toy_r50.{name}_me"]["files"][0] for name in ("toys", "games"))
    first.update(url="https://zoo.test/a.pth", mirrors=["https://store.test/b.pth"], size=1000)
    second.update(url="https://zoo.test/c.pth", size=1000)
    site.answers = {"/b.pth": (200, {"Content-Length": "1000"}), "/c.pth": (200, {"Content-Length": "999"})}
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    return tmp_path / "mine.json"


def test_check_asks_every_link_and_downloads_nothing(
    linked: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(linked) == 1
    printed = capsys.readouterr()
    rows = [re.split(r" {2,}", line) for line in printed.out.splitlines()[2:5]]
    assert rows == [
        ["toy_r50.toys_me", "HTTP 404", "-", "https://zoo.test/a.pth"],
        ["toy_r50.toys_me", "HTTP 200", "0.0 MB", "https://store.test/b.pth"],
        ["toy_r50.games_me", "HTTP 200, not 1000 bytes", "0.0 MB", "https://zoo.test/c.pth"],
    ]
    assert "1 of 3 links answer, for 1 of 2 weights" in printed.out
    assert printed.err == "zoo-seg: no link answers for toy_r50.games_me\n"
    assert sorted(site.asked) == [("HEAD", f"/{name}.pth") for name in "abc"]
    assert check(linked, "toy_r50.toys_me") == 0
    site.answers["/c.pth"] = 200, {"Content-Length": "1000"}
    assert check(linked) == 0


def test_check_as_json(linked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(linked, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["without_link"] == ["toy_r50.games_me"]
    first, second, third = found["links"]
    assert first == {
        "id": "toy_r50.toys_me",
        "url": "https://zoo.test/a.pth",
        "ok": False,
        "status": "HTTP 404",
        "size": None,
        "fits": False,
    }
    assert (second["ok"], second["fits"], second["size"]) == (True, True, 1000)
    assert (third["ok"], third["fits"], third["size"]) == (True, False, 999)


def test_links_are_asked_at_once_and_each_once(site: Site) -> None:
    urls = [f"https://zoo.test/{i % 40}" for i in range(80)]
    assert len(links.ask_all(urls)) == 40 == len(site.asked)
    assert 4 <= site.most <= links.AT_ONCE


def test_check_uses_no_network_when_it_is_switched_off(
    linked: Path, site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    assert check(linked) == 1
    assert "not asked: offline" in capsys.readouterr().out
    assert not site.asked


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "--timeout", "0"], "--timeout is 0.0; expected seconds"),
        (["check", "nothing"], "has no weights 'nothing'"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", *arguments]) == 2
    assert says in capsys.readouterr().err
