"""Images from anywhere: what is broken or built to harm is named with its reason, and the batch goes on."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, Zoo
from helpers.stored import write_png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageFile

import zoo_seg.cli.predict
from zoo_seg.cli import main
from zoo_seg.cli.inputs import images as pictures
from zoo_seg.errors import ImageError, OptionError
from zoo_seg.images.reading import read_image
from zoo_seg.inference.segmentation import Segmentation

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG put together by hand: it announces what it likes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(RGB)).save(buffer, kind, **options)
    return buffer.getvalue()


BOMB = png(50_000, 50_000, 8, 2, bytes(1000))
PIXEL = bytes([0, 1, 2, 3])  # a row of one RGB pixel, unfiltered
MUCH = zlib.compress(bytes(100_000_000), 9)

# --- one image --------------------------------------------------------------------------------


def test_a_bomb_is_refused_by_what_it_announces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    path = tmp_path / "bomb.png"
    path.write_bytes(BOMB)
    assert path.stat().st_size < 1000
    with pytest.raises(ImageError, match=r"2500000000 pixels.* set the environment variable ZOO_SEG_MAX_PIXELS"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_max_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))  # 600 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="600 pixels"):
        read_image(path)
    monkeypatch.setenv("ZOO_SEG_MAX_PIXELS", "600")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), RGB)
    monkeypatch.setenv("ZOO_SEG_MAX_PIXELS", "599")
    with pytest.raises(ImageError, match=r"600 pixels.* 599 pixels.*ZOO_SEG_MAX_PIXELS"):
        read_image(path)


@pytest.mark.parametrize("value", ["many", "0", "-1", "1e9"])
def test_max_pixels_that_are_no_number(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_SEG_MAX_PIXELS", value)
    with pytest.raises(OptionError, match=f"ZOO_SEG_MAX_PIXELS is '{value}'; expected a number of pixels"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded("JPEG")[:-300], "truncated"),
        (png(1, 1, 8, 2, PIXEL, chunk(b"iCCP", b"x\0\0" + MUCH)), "Decompressed data too large"),
        (png(1, 1, 8, 2, PIXEL, chunk(b"zTXt", b"x\0\0" + MUCH)), "Decompressed data too large"),
        (png(1, 1, 8, 2, PIXEL, chunk(b"IDAT", b"garbage")), "cannot be read"),
        (png(0, 5, 8, 2, b""), "expected"),
        (b"GIF89a" + bytes(3), "not an image"),
        (b"\xff\xd8\xff\xe1\xff\xff", "cannot be read"),
        (b"#EXTM3U\nhttp://zoo.invalid/a.png\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
    ids=["jpeg", "profile", "text", "data", "empty", "gif", "exif", "playlist", "svg"],
)
def test_broken_files_are_named_with_a_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 400


def test_no_program_is_run_on_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript by the name of an image: Pillow would hand it to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was called"))
    for name in ("holiday.jpg", "figure.eps"):
        (tmp_path / name).write_bytes(encoded("EPS"))
        with pytest.raises(ImageError, match=f"{name}: EPS holds drawing commands, which are not run"):
            read_image(tmp_path / name)


def grey16(*values: int) -> bytes:
    return b"\0" + struct.pack(f">{len(values)}H", *values)


def cmyk() -> bytes:
    return encoded("JPEG", Image.new("CMYK", (8, 8), (255, 0, 0, 0)), quality=100)


def moving(kind: str) -> bytes:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime")]
    return encoded(kind, frames[0], save_all=True, append_images=frames[1:], lossless=True)


@pytest.mark.parametrize(
    ("content", "first"),
    [
        (png(2, 1, 16, 2, grey16(0xFF00, 0x0180, 0, 1000, 0, 0)), (255, 1, 0)),
        (png(1, 1, 16, 6, grey16(0xFF00, 0x0180, 0, 0)), (255, 1, 0)),
        (png(1, 1, 16, 4, grey16(0xA000, 0)), (160, 160, 160)),
        (cmyk(), (0, 255, 255)),
        (moving("GIF"), (255, 0, 0)),
        (moving("PNG"), (255, 0, 0)),
        (moving("WEBP"), (255, 0, 0)),
        (png(1, 1, 8, 2, PIXEL, chunk(b"iCCP", b"x\0\0garbage")), (1, 2, 3)),
        (encoded("PNG", icc_profile=b"nonsense"), tuple(RGB[0, 0])),
        (png(1, 1, 8, 2, bytes(50_000_000) + PIXEL), (0, 0, 0)),  # beyond the first row nobody looks
    ],
    ids=["rgb16", "rgba16", "la16", "cmyk", "gif", "apng", "webp", "profile", "nonsense", "long"],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.txt"])  # the ending does not matter
def test_odd_files_are_read(content: bytes, first: tuple[int, int, int], name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    np.testing.assert_allclose(read_image(tmp_path / name)[0, 0], first, atol=2)


def test_too_little_memory_is_a_reason_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: ImageFile.ImageFile) -> None:
        raise MemoryError

    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match=r"a\.png: there is too little memory to read it"):
        read_image(tmp_path / "a.png")


# --- mutated files ------------------------------------------------------------------------------

KINDS = ["BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"]
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06" + bytes(6)  # orientation 6
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "GIF": [{}, {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}],
    "JPEG": [
        {},
        {"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    ],
    "PNG": [{}, {"icc_profile": b"p" * 40}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "jpeg"}],
    "WEBP": [{}, {"lossless": True}],
}
SEEDS: list[bytes] = []
for _kind in KINDS:
    for _options in OPTIONS.get(_kind, [{}]):
        with suppress(OSError, KeyError):  # a codec that this Pillow was built without
            SEEDS.append(encoded(_kind, Image.fromarray(RGB), **_options))
SEEDS += [encoded("PNG", Image.fromarray(RGB).convert(mode)) for mode in ("P", "1", "LA")]
SEEDS += [png(3, 1, 16, 0, grey16(1, 2, 3)), cmyk()]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An image file with bytes changed, repeated, cut out, and its end cut off."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        # headers decide most, so half of the changes are made there
        end = min(len(content), draw(st.sampled_from([64, len(content)])))
        at = draw(st.integers(0, max(end - 1, 0)))
        change = draw(st.sampled_from(["set", "set", "set", "cut", "repeat", "end"]))
        if change == "set":
            content[at : at + 1] = draw(
                st.sampled_from([b"\0", b"\x01", b"\x7f", b"\x80", b"\xff"]) | st.binary(max_size=4)
            )
        elif change == "cut":
            del content[at : at + draw(st.integers(1, 32))]
        elif change == "repeat":
            content[at:at] = content[at : at + draw(st.integers(1, 64))]
        else:
            del content[at:]
    return bytes(content)


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("PICTURE_MUTATIONS", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=mutated())
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_file_is_a_picture_or_an_image_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # put back, for the next line sets it
        patch.setenv("ZOO_SEG_MAX_PIXELS", "1000000")
        try:
            picture = read_image(path)
        except ImageError as error:
            assert str(path) in str(error)
            return
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert picture.size > 0


# --- a batch of them ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def failed(self) -> dict[str, str]:
        """The reason of each failure in the report on stdout."""
        return {each["picture"]: each["reason"] for each in json.loads(self.out)["failed"]}

    @property
    def done(self) -> list[str]:
        return sorted(each["picture"] for each in json.loads(self.out)["done"])


Predict = Callable[..., Result]


@pytest.fixture
def predict(capfd: pytest.CaptureFixture[str], zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """`zoo-seg predict ... --out out` with the toy weights, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def predict(*arguments: str | Path) -> Result:
        capfd.readouterr()
        line = ["predict", *map(str, arguments), "--weights", "toy_r50.toys", "--out", "out"]
        code = main(line)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert "Warning" not in err
        return Result(code, out, err)

    return predict


def write(path: str | Path, content: bytes = b"") -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or encoded("PNG"))
    return path


def results(folder: str | Path = "out") -> list[str]:
    """Everything below it but the mark of a folder of results."""
    found = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.name != "zoo_seg_predict.json")


def test_a_batch_goes_on_past_every_kind_of_trouble(predict: Predict) -> None:
    good = ["p/ä b/日本 語.png", "p/a.jpg", "p/cmyk.jpg", "p/gif.bmp", "p/link.png", "p/two\nlines\x1b[2J.png"]
    for name, content in zip(good, [b"", encoded("JPEG"), cmyk(), moving("GIF"), None, b""], strict=True):
        if content is not None:
            write(name, content)
    broken = {
        "p/bomb.png": (BOMB, "ZOO_SEG_MAX_PIXELS"),
        "p/cut.jpg": (encoded("JPEG")[:-300], "truncated"),
        "p/esc\x1b]0;x\x07\n.png": (b"text", "not an image"),
        "p/figure.jpg": (encoded("EPS"), "not run"),
    }
    for name, (content, _) in broken.items():
        write(name, content)
    write("elsewhere/outside.png")
    write("elsewhere/further/also.png")
    Path("p/link.png").symlink_to(Path("elsewhere/outside.png").absolute())  # read
    Path("p/more").symlink_to(Path("elsewhere").absolute())  # a folder: not entered
    Path("p/gone.png").symlink_to("nowhere.png")
    Path("p/circle.png").symlink_to("circle.png")
    Path("p/around").symlink_to("..")
    os.mkfifo("p/pipe.png")  # would block whoever opens it
    write("p/._a.jpg", b"AppleDouble")
    write("p/.thumbnails/a.png")

    result = predict("p", "missing.png", "--json", "-")
    assert result.code == 1
    assert result.done == sorted(good)
    expected = {name: reason for name, (_, reason) in broken.items()}
    expected |= {"p/gone.png": "leads nowhere", "p/circle.png": "symbolic links", "missing.png": "no such file"}
    assert result.failed.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in result.failed[name]
        assert name not in result.failed[name]
    lines = result.err.splitlines()
    assert len(lines) == len(expected) + 1
    assert all(line.isprintable() for line in lines)
    assert r"zoo-seg: p/esc\x1b]0;x\x07\n.png: not an image" in result.err
    assert lines[-1] == f"{len(good)} done, {len(expected)} failed; results in out"
    assert len(results()) == 2 * len(good)
    assert "ä b/日本 語_overlay.png" in results()

    again = predict("p", "missing.png", "--json", "-")
    assert again.code == 1
    assert again.failed == result.failed
    report = json.loads(again.out)
    assert sorted(each["picture"] for each in report["kept"]) == sorted(good)
    assert report["done"] == []


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are Unicode there")
def test_a_name_that_is_no_unicode(predict: Predict) -> None:
    write(os.fsdecode(b"p/caf\xe9.png"))
    write(os.fsdecode(b"p/\xff.png"), b"text")
    result = predict("p", "--json", "report/r.json")
    assert (result.code, result.out) == (1, "1 done, 1 failed; results in out\n")
    assert r"p/\udcff.png: not an image" in result.err
    report = json.loads(Path("report/r.json").read_text())
    assert [os.fsencode(each["mask"]) for each in report["done"]] == [b"out/caf\xe9_mask.png"]
    assert Path(report["done"][0]["mask"]).is_file()


def test_names_as_long_as_can_be(predict: Predict) -> None:
    write(f"{'n' * 243}.png")  # its overlay's name has 255 bytes
    write(f"{'m' * 251}.png")  # and this one's more
    result = predict(*(str(path) for path in Path().glob("*.png")), "--json", "-")
    assert result.done == [f"{'n' * 243}.png"]
    ((name, reason),) = result.failed.items()
    assert name == f"{'m' * 251}.png"
    assert "cannot be written (File name too long)" in reason
    assert len(results()) == 2


def test_folders_that_lead_in_a_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("p/q/a.png")
    for name in ("p/q/up", "p/q/and", "p/again"):
        Path(name).symlink_to(Path("p").absolute())
    for pattern in ("p/**/*.png", "p/**", "p", "p/*/*.png"):
        found = list(pictures(pattern, on_trouble=lambda *_: pytest.fail("there is none")))
        assert found == [(Path("p/q/a.png"), Path("q"))]


def test_what_may_not_be_read_and_what_vanishes_meanwhile(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "secret/c.png", "vanishing.png", "z.png"):
        write(f"p/{name}")
    scandir, opened, load = os.scandir, Path.open, zoo_seg.cli.predict.load_predicting
    denied = PermissionError(errno.EACCES, "Permission denied")

    def open_(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "b.png":  # as for a user; root may read everything
            raise denied
        return opened(path, *arguments, **options)

    def scandir_(path: Any) -> Any:
        if str(path).endswith("secret"):
            denied.filename = str(path)
            raise denied
        return scandir(path)

    def load_(arguments: Any) -> Any:
        Path("p/vanishing.png").unlink()  # after the listing, before the reading
        return load(arguments)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(os, "scandir", scandir_)
    monkeypatch.setattr(zoo_seg.cli.predict, "load_predicting", load_)
    result = predict("p", "--json", "-")
    assert (result.code, result.done) == (1, ["p/a.png", "p/z.png"])
    assert result.failed == {
        "p/b.png": "cannot be read (Permission denied); check the file's permissions",
        "p/secret": "cannot be listed (Permission denied)",
        "p/vanishing.png": "there is no such file; check the path",
    }


def test_an_output_folder_that_fills_up(predict: Predict) -> None:
    resource = pytest.importorskip("resource", reason="a limit of POSIX stands in for the full disk")
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    write("p/a.png")
    write("p/big.png", encoded("PNG", Image.fromarray(noise)))
    write("p/c.png")
    assert predict("p/a.png").code == 0  # the weights are in the cache now
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # its overlay has more
    try:
        result = predict("p", "--json", "-")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.code, result.done) == (1, ["p/c.png"])
    assert result.failed == {"p/big.png": "its results cannot be written (File too large): out"}
    assert results() == [f"{stem}_{kind}.png" for stem in "ac" for kind in ("mask", "overlay")]
    assert predict("p").out == "1 done, 2 already there; results in out\n"


def test_results_are_written_while_the_network_works(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    made, second, in_time = [], threading.Event(), []

    def count(result: Segmentation) -> None:
        made.append(result)
        if len(made) == 2:
            second.set()

    def indexed(result: Segmentation) -> Image.Image:
        in_time.append(second.wait(30))
        return Image.new("P", (1, 1))

    for name in "abc":
        write(f"p/{name}.png")
    monkeypatch.setattr(Segmentation, "__post_init__", count)
    monkeypatch.setattr(Segmentation, "indexed", indexed)
    assert predict("p", "--no-overlay").out == "3 done; results in out\n"
    assert in_time == [True] * 3


def test_an_interruption_tells_what_was_done(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    def overlay(result: Segmentation, *_: Any, **__: Any) -> Image.Image:
        if result.mask.shape == (7, 7):
            raise KeyboardInterrupt
        return Image.new("RGB", (1, 1))

    for name in "abcde":
        write(f"p/{name}.png")
    write("p/d.png", encoded("PNG", Image.new("RGB", (7, 7))))
    write("p/b.png", b"text")
    monkeypatch.setattr(Segmentation, "overlay", overlay)
    result = predict("p", "--json", "r.json")
    assert result.code == 130
    assert result.err.endswith("interrupted; run the same command again to go on\n")
    assert result.out == "2 done, 1 failed; results in out\n"
    assert "p/b.png: not an image" in result.err
    assert len(json.loads(Path("r.json").read_text())["done"]) == 2


def test_the_report_overwrites_no_picture(predict: Predict) -> None:
    """`--json a.png b.png`, by someone used to a flag without a value."""
    path = write("a.png")
    result = predict("--json", "a.png", "b.png")
    assert result.code == 2
    assert "--json a.png; expected a file that ends in .json, or - for stdout" in result.err
    assert path.read_bytes() == encoded("PNG")


def test_reading_pictures_loads_no_torch(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / "images" / split / "a.png")
        write(tmp_path / "masks" / split / "a.png", encoded("PNG", Image.fromarray(RGB[..., 0] % 2)))
    about = {"classes": ["ground", "sky"], "palette": [[0, 0, 0], [9, 9, 9]], "ignore_index": 255}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    code = """
import sys
from zoo_seg.cli import main
code = main(["check-data", sys.argv[1]])
from zoo_seg.inference import Segmentation
from zoo_seg.images.reading import read_image
print(code, {"torch", "torchvision", "timm"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "0 set()", done.stdout + done.stderr


def test_a_12_bit_image_waits_for_its_range(predict: Predict) -> None:
    eight = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Path("p").mkdir()
    Image.fromarray(eight).save("p/eight.png")
    write_png(Path("p/twelve.png"), np.rint(eight * (4095 / 255)).astype(int), 16, "rgb")
    result = predict("p", "--json", "-")
    assert result.code == 1
    assert result.done == ["p/eight.png"]
    assert "such as --range 0 4095" in result.failed["p/twelve.png"]
    assert predict("p", "--range", "4095", "0").code == 2
    assert predict("p", "--range", "0", "4095", "--overwrite").code == 0
    eight_mask, twelve_mask = (np.asarray(Image.open(f"out/{name}_mask.png")) for name in ("eight", "twelve"))
    np.testing.assert_array_equal(twelve_mask, eight_mask)
