"""`zoo-seg demo`: the page as a visitor meets it, in a real browser, and what lies behind it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pytest
from conftest import REPOSITORY, Zoo
from helpers.servers import Server, send, silence
from PIL import Image

import zoo_seg
import zoo_seg.cli
from zoo_seg.cli import main
from zoo_seg.inference.segmentation import Segmentation

pytest.importorskip("gradio")
import zoo_seg.demo.networks as networks_module
from zoo_seg.demo.gate import Hosts, Upload
from zoo_seg.demo.networks import Networks
from zoo_seg.demo.page import show_html
from zoo_seg.demo.view import View, agreement, results_html

pytestmark = [pytest.mark.slow, pytest.mark.browser]

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PACKAGED = "semanticfpn_mobilenetv4_small.camvid_zoo"
STREET = REPOSITORY / "examples" / "street.jpg"
EVIL = "<img src=x onerror=alert(1)>\"'&{{value}}${value}"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def blocks(path: Path, width: int = 60, height: int = 40) -> Path:
    """An image file of coloured blocks."""
    colours = np.random.default_rng(0).integers(0, 256, (-(-height // 10), -(-width // 10), 3), dtype=np.uint8)
    Image.fromarray(colours.repeat(10, 0).repeat(10, 1)[:height, :width]).save(path)
    return path


def uploaded(path: Path) -> Upload:
    return Upload(str(blocks(path)), path.parent)


def result(height: int, width: int, classes: int = 4) -> Segmentation:
    mask = (np.arange(height * width) % classes).reshape(height, width)
    names = (EVIL, *(f"class {i}" for i in range(1, classes)))
    colours = tuple((i % 256, 90, i // 256) for i in range(classes))
    picture = np.full((height, width, 3), 200, np.uint8)
    return Segmentation(mask.astype(np.uint8 if classes <= 256 else np.uint16), names, colours, picture)


def from_link(text: str) -> Image.Image:
    """The image in the link that is a mask's file."""
    (data,) = re.findall(r'download="[^"]*" href="data:image/png;base64,([^"]*)"', text)
    return Image.open(io.BytesIO(base64.b64decode(data)))


# --- what lies behind the page ------------------------------------------------------------------


def test_what_needs_no_download_comes_first(zoo: Zoo) -> None:
    networks = Networks()
    assert networks.default == PACKAGED == networks.names()[0]
    assert set(networks.names()) == {each.id for each in zoo_seg.list_weights()}
    own = Networks({"runs/mine": zoo_seg.create_model("toy_r50", "toys")})
    assert own.names()[:2] == ["runs/mine", PACKAGED]
    assert own.default == "runs/mine"
    assert "3 classes of toys · mIoU 12.5 %" in networks.facts("toy_r50.toys_me")


def test_a_network_is_loaded_once_and_few_are_held(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def create(name: str, record: zoo_seg.Weights) -> Any:
        loaded.append(record.id)
        return zoo_seg.create_model(name, record)

    monkeypatch.setattr(networks_module, "create_model", create)
    networks = Networks()
    one, two = str(blocks(tmp_path / "one.png")), str(blocks(tmp_path / "two.png", 30))
    toys, games = "toy_r50.toys_me", "toy_r50.games_me"
    for picture in (one, two):
        for name in (toys, games):
            assert networks.predict(picture, name).mask.shape == ((40, 60) if picture == one else (40, 30))
    assert loaded == [toys, games]
    networks.predict(one, PACKAGED)
    networks.predict(one, toys)
    assert loaded == [toys, games, PACKAGED, toys]


@pytest.mark.parametrize("classes", [4, 300])
def test_a_view_holds_the_picture_its_ids_and_the_mask(classes: int) -> None:
    shown = result(40, 60, classes)
    text = results_html([View(EVIL, "", shown)], EVIL)
    assert EVIL not in text
    assert "<img src=x" not in text
    (ids,), (itemsize,) = re.findall(r'data-ids="([^"]*)"', text), re.findall(r'data-bytes="(\d)"', text)
    assert itemsize == ("1" if classes == 4 else "2")
    values = np.frombuffer(zlib.decompress(base64.b64decode(ids)), shown.mask.dtype).reshape(40, 60)
    assert np.array_equal(values, shown.mask)
    assert np.array_equal(np.asarray(from_link(text)), shown.mask)


def test_a_large_picture_is_shown_smaller_and_its_mask_is_whole() -> None:
    shown = result(900, 2000)
    text = results_html([View("a", "", shown)], "street")
    assert 'data-width="1280" data-height="576"' in text
    assert 'download="street_mask.png"' in text
    assert from_link(text).size == (2000, 900)


def test_legend_has_shares_in_percent_largest_first() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:70], mask[70:99], mask[99, 0] = 1, 2, 3
    colours = ((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))
    shown = Segmentation(mask, ("a", "b", "c", "d"), colours, np.zeros((100, 100, 3), np.uint8))
    rows = re.findall(r"rgb(\([^)]*\)).*?<span>(.*?)</span><b>(.*?)</b>", results_html([View("x", "", shown)], "x"))
    assert rows == [("(4, 5, 6)", "b", "70.0 %"), ("(7, 8, 9)", "c", "29.0 %"), ("(1, 2, 3)", "a", "1.0 %"),
                    ("(10, 11, 12)", "d", "<0.1 %")]  # fmt: skip


def test_agreement_is_of_networks_with_the_same_classes() -> None:
    first = result(10, 10)
    mask = first.mask.copy()
    mask[:3] = (mask[:3] + 1) % 4
    second = Segmentation(mask, first.classes, first.palette, first.image)
    assert agreement(first, second) == 0.7
    assert agreement(first, result(10, 10, 5)) is None
    views = [View("a", "", first), View("runs/b", "", second)]
    text = results_html(views, "street")
    assert "<strong>70.0 %</strong>" in text
    assert re.findall(r'download="(.*?)"', text) == ["street_mask.png", "street_runs_b_mask.png"]
    assert "different classes" in results_html([views[0], View("c", "", result(10, 10, 5))], "street")
    assert "Only one" in results_html([views[0], View("c", "", "no network")], "street")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no image", "that Pillow can read"), (b"", "that Pillow can read"), (None, "is not among the uploaded images")],
)
def test_a_broken_picture_is_one_message(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    text = show_html(Networks(), Upload(str(path), tmp_path), PACKAGED, "toy_r50.toys_me")
    assert text.count('role="alert"') == 1
    assert "broken.jpg: " in text
    assert message in text
    assert str(tmp_path) not in text


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "2400 pixels" in show_html(Networks(), uploaded(tmp_path / "bomb.png"), PACKAGED)


def test_what_goes_wrong_with_one_network_leaves_the_other(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    missing = "fcn_resnet50_os8.voc_ssseg"
    picture = uploaded(tmp_path / "a.png")
    text = show_html(Networks(), picture, missing, "toy_r50.toys_me")
    assert text.count('role="alert"') == text.count("zoo-download") == 1
    assert "ZOO_SEG_OFFLINE" in text
    monkeypatch.setattr(networks_module, "create_model", lambda *_: 1 // 0)
    text = show_html(Networks(), picture, "toy_r50.toys_me")
    assert "Unexpected ZeroDivisionError" in text
    assert "Traceback" not in text


def test_without_a_picture_the_page_says_what_to_do() -> None:
    assert "drop one" in show_html(Networks(), None, PACKAGED)


# --- the command line ---------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and what is said on stderr."""
    try:
        code = main(["demo", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return code, err


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, err = run(capsys, "--port", str(port))
    assert (code, err) == (1, f"zoo-seg: error: port {port} is in use; type: zoo-seg demo --port {port + 1}\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--port http", "'http' is not a port"),
        ("--port 0", "is not a port"),
        ("--port 70000", "is not a port"),
        ("--host no.such.invalid", "--host no.such.invalid: cannot listen there"),
        ("--allow-host *", "--allow-host '*': expected the name of a host, such as zoo.example.org"),
        ("--host 192.0.2.1", "--host 192.0.2.1: cannot listen there"),
        ("--device cuda:99", "device 'cuda:99' cannot be used"),
        ("--weights ade20k", "needs a --model"),
        ("--weights no_model.tag", "there is no model 'no_model'"),
    ],
)
def test_careless_command_lines(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = run(capsys, *line.split())
    assert code == 2
    assert message in err
    assert err.count("\n") <= 2


def test_without_the_extra_the_command_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(zoo_seg.cli, "demo", raising=False)
    for name in ("zoo_seg.cli.demo", "zoo_seg.demo.page"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, err = run(capsys)
    assert code == 1
    assert "pip install 'zoo_seg[demo]'" in err
    assert err.count("\n") == 1


# --- in a browser -------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def serving(command: list[str | Path], port: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it serves at this port."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    try:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if f"http://127.0.0.1:{port}" in line:
                break
        else:
            pytest.fail("".join(said))
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def address(toy_files: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `zoo-seg demo` serves, with the toys beside the published weights and no network."""
    port, temporary = free_port(), tmp_path_factory.mktemp("temporary")
    with serving(
        ["-m", "zoo_seg", "demo", "--port", str(port), "--allow-host", "zoo.example.org"],
        port,
        ZOO_SEG_HOME=str(tmp_path_factory.mktemp("home")),
        ZOO_SEG_OFFLINE="1",
        http_proxy="http://127.0.0.1:9",  # whatever stands there is not asked for this machine
        ZOO_SEG_MANIFEST=str(toy_files.manifest),
        ZOO_SEG_MIRROR=str(toy_files.mirror),
        TMPDIR=str(temporary),
    ) as process:
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
        assert (process.returncode, output) == (0, "")
    assert not [path for path in temporary.rglob("*") if path.is_file()]  # no upload stays


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page as it opens; no script of it may fail, and nothing of it may ask another host."""
    requests: list[str] = []
    errors: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.on("request", lambda request: requests.append(request.url))
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".zoo-image")
    yield page
    context.close()
    assert requests
    assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert not errors


def upload(page: Page, path: Path) -> None:
    page.set_input_files("#zoo-input input[type=file]", path)


def choose(page: Page, which: str, name: str) -> None:
    page.click(f"#zoo-{which} input")
    page.keyboard.press("Control+A")
    page.keyboard.type(name)  # of a long list only what fits is shown
    page.get_by_role("option", name=name, exact=True).click()


def wait_for_mask(page: Page, file: str) -> None:
    page.wait_for_selector(f'.zoo-download[download="{file}"]')


def downloaded(page: Page, folder: Path) -> Path:
    with page.expect_download() as started:
        page.click(".zoo-download >> nth=0")
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def point(page: Page, x: float, y: float) -> None:
    """Move to the middle of a pixel of the first image that is shown, at fractions of its sides."""
    box = page.locator(".zoo-image").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def legend(page: Page) -> dict[str, str]:
    return dict(row.split("\n") for row in page.locator(".zoo-legend li").all_inner_texts())


def test_the_page_opens_with_a_result(page: Page) -> None:
    expected = zoo_seg.create_model("semanticfpn_mobilenetv4_small", "camvid").predict(STREET)
    shown = legend(page)
    assert list(shown) == list(expected.areas())
    assert shown["road"] == f"{100 * expected.areas()['road']:.1f} %"
    assert page.title() == "zoo_seg"
    fonts = page.evaluate("getComputedStyle(document.querySelector('.zoo-name')).fontFamily")
    assert fonts.startswith("system-ui")


def test_a_picture_is_uploaded_looked_at_and_its_mask_downloaded(page: Page, tmp_path: Path) -> None:
    upload(page, cropped(tmp_path / "my street.png"))
    wait_for_mask(page, "my street_mask.png")
    expected = zoo_seg.create_model("semanticfpn_mobilenetv4_small", "camvid").predict(tmp_path / "my street.png")
    assert list(legend(page)) == list(expected.areas())

    path = downloaded(page, tmp_path)
    assert path.name == "my street_mask.png"
    with Image.open(path) as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), expected.mask)

    height, width = expected.mask.shape
    for y, x in ((5, 5), (height // 2, width // 2), (height - 5, width // 3)):
        point(page, (x + 0.5) / width, (y + 0.5) / height)
        name = expected.classes[expected.mask[y, x]]
        page.wait_for_function("name => document.querySelector('.zoo-label.is-shown')?.textContent === name", arg=name)
        assert page.inner_text(".zoo-legend .is-here span") == name
    page.mouse.move(2, 2)
    page.wait_for_selector(".zoo-label.is-shown", state="hidden")


def cropped(path: Path) -> Path:
    with Image.open(STREET) as street:
        street.crop((200, 100, 700, 400)).save(path)
    return path


def test_opacity_acts_in_the_page(page: Page) -> None:
    opacity = "getComputedStyle(document.querySelector('.zoo-colours')).opacity"
    assert page.evaluate(opacity) == "0.5"
    slider = page.locator("#zoo-opacity input[type=range]")
    slider.focus()
    slider.press("End")
    page.wait_for_function(f"{opacity} === '1'", timeout=2000)
    slider.press("Home")
    page.wait_for_function(f"{opacity} === '0'", timeout=2000)


def test_two_networks_are_compared(page: Page) -> None:
    choose(page, "second", "toy_r50.toys_me")
    page.wait_for_selector(".zoo-agreement >> text=different classes")
    choose(page, "first", "toy_r50.games_me")
    page.wait_for_selector(".zoo-agreement >> text=100.0 %")
    assert page.locator(".zoo-name").all_inner_texts() == ["toy_r50.games_me", "toy_r50.toys_me"]
    point(page, 0.5, 0.5)
    page.wait_for_function("document.querySelectorAll('.zoo-label.is-shown').length === 2")
    here, there = page.locator(".zoo-label").all_inner_texts()
    assert here == there
    choose(page, "second", "none")
    page.wait_for_selector(".zoo-agreement", state="detached")
    assert page.locator(".zoo-image").count() == 1


def test_what_fails_is_a_message_in_the_page(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    upload(page, tmp_path / "broken.jpg")
    page.wait_for_selector("[role=alert] >> text=that Pillow can read")
    upload(page, blocks(tmp_path / "whole.png"))
    wait_for_mask(page, "whole_mask.png")
    choose(page, "first", "fcn_resnet50_os8.voc_ssseg")
    page.wait_for_selector("[role=alert] >> text=ZOO_SEG_OFFLINE")
    assert "Traceback" not in page.content()


def test_a_picture_is_pasted_dropped_and_removed(page: Page, tmp_path: Path) -> None:
    data = base64.b64encode(blocks(tmp_path / "pasted.png").read_bytes()).decode()
    page.get_by_label("Remove Image").wait_for()  # what takes the paste is there
    page.evaluate(
        """async data => {
            const carried = new DataTransfer();
            const blob = await (await fetch(`data:image/png;base64,${data}`)).blob();
            carried.items.add(new File([blob], "pasted.png", {type: "image/png"}));
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: carried, bubbles: true}));
        }""",
        data,
    )
    wait_for_mask(page, "pasted_mask.png")
    page.get_by_label("Remove Image").click()
    page.wait_for_selector("[role=status] >> text=No image yet")
    page.click("text=Show the drawn street")
    wait_for_mask(page, "street_mask.png")
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    upload(page, tmp_path / "broken.jpg")  # it is zoo_seg that reads it, after an example as well
    page.wait_for_selector("[role=alert] >> text=that Pillow can read")


# --- without a browser --------------------------------------------------------------------------


@dataclass
class Visitor:
    """Asks a page without a browser, and says what it likes."""

    port: int

    def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> tuple[int, str]:
        """Status and text of an answer; a header is left out where it is None."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        connection.request(method, path, body, headers)
        with contextlib.closing(connection.getresponse()) as answer:
            return answer.status, answer.read().decode(errors="replace")

    def show(self, *inputs: Any, function: int = 2) -> str:
        """What the page shows for an image, weights and weights to compare with."""
        session = os.urandom(8).hex()
        joined, text = self.ask(
            "POST", "/gradio_api/queue/join", {"data": inputs, "fn_index": function, "session_hash": session}
        )
        assert joined == 200, text
        _, text = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")
        messages = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]
        (output,) = [each["output"] for each in messages if each["msg"] == "process_completed"]
        return str(output["data"][0] if "data" in output else output)

    def upload(self, name: str, content: bytes, **headers: str) -> tuple[int, str]:
        head = f'--X\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--X--\r\n"
        return self.ask(
            "POST", "/gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=X", **headers}
        )


@pytest.fixture
def visitor(address: str) -> Visitor:
    return Visitor(int(address.rstrip("/").rpartition(":")[2]))


REAL = {"meta": {"_type": "gradio.FileData"}}


def refused(visitor: Visitor, path: str, more: dict[str, Any]) -> bool:
    said = visitor.show({"path": path, **more}, PACKAGED, "")
    return "is not among the uploaded images; upload it again" in said and "data:image" not in said


def test_an_upload_is_all_that_a_visitor_sees(visitor: Visitor, tmp_path: Path) -> None:
    blocks(tmp_path / "secret.png")
    os.mkfifo(tmp_path / "pipe.png")
    status, text = visitor.upload("../../mine.png", blocks(tmp_path / "mine.png").read_bytes())
    (mine,) = json.loads(text)
    assert status == 200
    assert Path(mine).parent.parent.parent == Path(mine).parents[2]
    assert Path(mine).is_file()
    assert "data:image" in visitor.show({"path": mine, **REAL}, PACKAGED, "")

    folder = Path(mine).parent
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "out").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.png")
    inside = ["link.png", "out/secret.png", "pipe.png", "../nothing.png", "../../../../etc/hostname", "\0.png"]
    outside = ["secret.png", "nothing.png", "pipe.png", "", "secret.png/../secret.png"]
    paths = [f"{folder}/{name}" for name in inside] + [f"{tmp_path}/{name}" for name in outside]
    paths += ["/etc/passwd", "/dev/zero", "/proc/self/environ", str(folder), f"{folder}x/a.png", "", "~", "\udc80.png"]
    paths += [f"http://127.0.0.1:{visitor.port}/theme.css", f"file://{tmp_path}/secret.png", mine + "/" + "a" * 5000]
    for path in paths:
        assert refused(visitor, path, {}), path
        assert refused(visitor, path, REAL), path
        status, text = visitor.ask("GET", f"/gradio_api/file={quote(path.encode('utf-8', 'surrogateescape'))}")
        assert (status, text) == (404, "not found\n"), path
    assert visitor.ask("GET", f"/gradio_api/file={quote(mine)}")[0] == 200
    assert "data:image" in visitor.show({"path": mine}, PACKAGED, "")  # nobody waits for a pipe


def test_nothing_is_fetched_for_a_visitor(visitor: Visitor) -> None:
    with Server() as server:
        url = server.url("image.png")
        link = {"path": url, "url": url, **REAL}
        assert refused(visitor, url, REAL)
        assert "No image yet" in visitor.show({"url": url, **REAL}, PACKAGED, "")
        for inputs in ([None, link, ""], [None, PACKAGED, link], [None, [PACKAGED], ""], [None, PACKAGED, None]):
            assert "no such weights" in visitor.show(*inputs)
        for path in (f"file={url}", f"file/{url}", f"proxy={url}", f"proxy={quote(url, '')}"):
            assert visitor.ask("GET", f"/gradio_api/{path}") == (404, "not found\n")
        assert not server.asked
    assert "error" in visitor.show(link)


@pytest.mark.parametrize(
    "route",
    ["call/show", "run/show", "api/show", "component_server", "process_recording", "vibe-edit", "stream/1", "reset"],
)
def test_what_the_page_does_not_ask_for_is_not_there(route: str, visitor: Visitor, tmp_path: Path) -> None:
    body = {"data": [{"path": str(blocks(tmp_path / "a.png"))}, PACKAGED, ""]}
    assert visitor.ask("POST", f"/gradio_api/{route}", body) == (404, "not found\n")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "zoo.example.org"])
def test_own_hosts_and_origins_are_served(name: str, visitor: Visitor) -> None:
    host = f"{name}:{visitor.port}"
    assert visitor.ask("GET", "/config", Host=host)[0] == 200
    assert visitor.ask("GET", "/config", Host=host, Origin=f"http://{host}")[0] == 200
    assert visitor.ask("GET", "/config", Origin="https://zoo.example.org")[0] == 200


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "192.0.2.1", "0.0.0.0", "null", "a@b:c"])
def test_foreign_hosts_and_origins_are_refused(name: str, visitor: Visitor) -> None:
    for path in ("/", "/config", "/gradio_api/queue/data?session_hash=a"):
        status, text = visitor.ask("GET", path, Host=name)
        assert status == 403
        assert "is not allowed; start the page with: zoo-seg demo --allow-host" in text
        assert visitor.ask("GET", path, Origin=name if name == "null" else f"http://{name}")[0] == 403
    assert visitor.upload("a.png", b"", Origin=f"http://{name}")[0] == 403
    other_page = f"http://localhost:{visitor.port + 1}"
    assert visitor.ask("POST", "/gradio_api/queue/join", {}, Origin=other_page)[0] == 403


@pytest.mark.parametrize(
    ("bound", "host", "known"),
    [
        ("0.0.0.0", "192.168.1.5:7860", True),
        ("[::]", "[fe80::1]:7860", True),
        ("0.0.0.0", f"{socket.gethostname()}:7860", True),
        ("0.0.0.0", "evil.example", False),
        ("192.168.1.5", "192.168.1.5", True),
        ("192.168.1.5", "192.168.1.6", False),
        ("Mine.lan", "mine.lan.:7860", True),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "localhost,evil.example", False),
        ("127.0.0.1", "[zoo", False),
    ],
)
def test_hosts_follow_the_address_that_is_bound(bound: str, host: str, known: bool) -> None:
    assert Hosts(bound).know(host) == known
    assert Hosts(bound).trust(f"http://{host}", host) or not known
    assert not Hosts(bound).trust("http://203.0.113.9:7860", host)


def test_large_requests_are_refused(visitor: Visitor, tmp_path: Path) -> None:
    status, text = visitor.ask("POST", "/gradio_api/queue/join", b"", **{"Content-Length": str(1 << 21)})
    assert status == 413
    assert "2097152 bytes are too many" in text
    assert visitor.ask("POST", "/gradio_api/upload", b"", **{"Content-Length": str(1 << 30)})[0] == 413
    assert visitor.ask("POST", "/gradio_api/upload", b"", **{"Transfer-Encoding": "chunked"})[0] == 411
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    (bomb,) = json.loads(visitor.upload("bomb.png", (tmp_path / "bomb.png").read_bytes())[1])
    assert "81000000 pixels" in visitor.show({"path": bomb, **REAL}, PACKAGED, "")


def test_many_visitors_at_once_are_all_answered(visitor: Visitor, tmp_path: Path) -> None:
    said: list[str] = []

    def visit(number: int) -> None:
        path = blocks(tmp_path / f"{number}.png", 40 + number)
        (mine,) = json.loads(visitor.upload(path.name, path.read_bytes())[1])
        said.append(visitor.show({"path": mine, **REAL}, PACKAGED, ""))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sizes = {tuple(map(int, re.findall(r'data-(?:width|height)="(\d+)"', text))) for text in said}
    assert sizes == {(40 + number, 40) for number in range(24)}


# --- as a Space ---------------------------------------------------------------------------------


def test_the_space_serves_the_same_page_and_waits_for_no_download(toy_files: Zoo, tmp_path: Path) -> None:
    folder = REPOSITORY / "examples" / "space"
    header = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    facts = dict(line.split(": ", 1) for line in header.strip().splitlines())
    assert facts["sdk"] == "gradio"
    assert (folder / facts["app_file"]).is_file()
    port, games = free_port(), (toy_files.mirror / "games.pth").read_bytes()
    with Server() as server:
        server.plan["games.pth"] = [silence(games[:9]), send(games)]
        server.files["toys.pth"] = (toy_files.mirror / "toys.pth").read_bytes()
        environment = {
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_TEMP_DIR": str(tmp_path),
            "SPACE_ID": "me/zoo",
            "SYSTEM": "spaces",
        }
        environment |= {"ZOO_SEG_MANIFEST": str(toy_files.manifest), "ZOO_SEG_MIRROR": server.base}
        environment |= {"ZOO_SEG_HOME": str(tmp_path / "home")}
        with serving([folder / "app.py"], port, **environment):
            visitor, street, said = Visitor(port), {"path": str(STREET)}, []
            status, text = visitor.ask("GET", "/config", Host="me-zoo.hf.space", Origin="https://huggingface.co")
            assert status == 200, text
            config = json.loads(text)
            assert config["title"] == "zoo_seg"
            assert not config["analytics_enabled"]

            first = threading.Thread(target=lambda: said.append(visitor.show(street, "toy_r50.games_me", "")))
            first.start()
            while not server.asked:
                time.sleep(0.01)
            assert "data:image" in visitor.show(street, PACKAGED, "")
            assert "data:image" in visitor.show(street, "toy_r50.toys_me", "")
            again = visitor.show(street, "toy_r50.games_me", "")
            assert "others fetch toy_r50.games_me; choose toy_r50.games_me again in a minute" in again
            assert first.is_alive()
            server.release.set()
            first.join()
            assert "data:image" in said[0]
