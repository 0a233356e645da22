"""A clip in, the clip with the classes laid over it out: the same frames at the same times, whatever the file."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Zoo

import zoo_seg.cli
from zoo_seg.cli import main
from zoo_seg.errors import ImageError, OptionError
from zoo_seg.images.reading import RGB
from zoo_seg.inference.segmentation import Segmentation

av = pytest.importorskip("av")
from zoo_seg.inference.video import open_clip, overlay_clip, write_clips  # noqa: E402  (needs the extra)

COLOURS = ((10, 20, 30), (200, 0, 0))


def drawn(index: int, height: int = 48, width: int = 64) -> RGB:
    """A frame in soft colours, with a bright block that moves on."""
    frame = np.full((height, width, 3), (40, 90, 160), np.uint8)
    frame[8:24, (2 * index) % (width - 16) :][:, :16] = (220, 210, 60)
    return frame


def draw_clip(
    path: Path,
    count: int = 12,
    size: tuple[int, int] = (48, 64),
    times: Sequence[int] = (),
    codec: str = "h264",
    sound: bool = False,
    **options: str,
) -> Path:
    """A clip of 25 frames a second, or shown at `times` in milliseconds."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        voice = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(drawn(i, *size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 16000, 0
            container.mux(voice.encode(silence))
            container.mux(voice.encode(None))
    return path


def frames_of(path: Path) -> tuple[list[RGB], list[float]]:
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in decoded], [frame.time for frame in decoded]


def halves(frames: Iterable[RGB]) -> Iterator[Segmentation]:
    """Stands in for a network: everything on the right is of class 1."""
    for frame in frames:
        mask = np.zeros(frame.shape[:2], np.uint8)
        mask[:, mask.shape[1] // 2 :] = 1
        yield Segmentation(mask, ("left", "right"), COLOURS, frame)


def overlaid(source: Path, target: Path, **options: Any) -> str | None:
    with open_clip(source) as clip:
        return overlay_clip(clip, target, halves, **options).trouble


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "MP4"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (48, 63)])
def test_size_rate_and_frames_are_kept(size: tuple[int, int], ending: str, tmp_path: Path) -> None:
    source = draw_clip(tmp_path / "clip.mkv", size=size)
    target = tmp_path / "new folder" / f"overlay.{ending}"
    assert overlaid(source, target, alpha=0.75) is None
    before, after = frames_of(source), frames_of(target)
    assert after[1] == pytest.approx(before[1])
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        assert stream.codec_context.name == "h264"
        assert (stream.height, stream.width) == size
    for old, new in zip(before[0], after[0], strict=True):
        expected = np.asarray(next(halves([old])).overlay(0.75), np.int16)
        assert np.abs(new - expected).mean() < 4
    assert [path.name for path in target.parent.iterdir()] == [target.name]  # and no part of one


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    """As of a phone, which films as fast as the light allows."""
    times = [0, 40, 50, 500, 1000, 1020]
    source = draw_clip(tmp_path / "clip.mp4", count=6, times=times)
    overlaid(source, tmp_path / "overlay.mp4")
    assert frames_of(tmp_path / "overlay.mp4")[1] == pytest.approx([time / 1000 for time in times])


def test_times_that_begin_anew_go_on(tmp_path: Path) -> None:
    """As where a camera joins its recordings."""
    part = draw_clip(tmp_path / "part.ts", count=50).read_bytes()
    (tmp_path / "clip.ts").write_bytes(part + part)
    overlaid(tmp_path / "clip.ts", tmp_path / "overlay.mp4")
    times = frames_of(tmp_path / "overlay.mp4")[1]
    assert times == pytest.approx([i / 25 for i in range(100)], abs=0.001)


@pytest.mark.parametrize(("ending", "codec"), [("webm", "libvpx"), ("ts", "h264"), ("avi", "mpeg4"), ("gif", "gif")])
def test_other_kinds_of_clips_are_read(ending: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{ending}"
    if ending == "gif":
        from PIL import Image

        pictures = [Image.fromarray(drawn(i)) for i in range(12)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    else:
        draw_clip(path, codec=codec)
    assert overlaid(path, tmp_path / "overlay.mp4") is None
    frames, times = frames_of(tmp_path / "overlay.mp4")
    assert len(frames) == 12
    assert times[0] == 0
    assert times[-1] == pytest.approx(11 / 25, abs=0.01)


def test_a_clip_filmed_upright_stays_upright(tmp_path: Path) -> None:
    """Phones store the image as the sensor saw it, and by how much to turn it."""
    source = draw_clip(tmp_path / "clip.mp4", count=3)
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # a quarter to the right
    head, track, rest = source.read_bytes().partition(b"tkhd")
    source.write_bytes(head + track + rest.replace(straight, turned, 1))
    overlaid(source, tmp_path / "overlay.mp4", alpha=0)
    for i, frame in enumerate(frames_of(tmp_path / "overlay.mp4")[0]):
        assert frame.shape == (64, 48, 3)
        assert np.abs(frame - np.rot90(drawn(i), -1).astype(np.int16)).mean() < 4


def test_few_frames_are_held_however_long_the_clip_is(tmp_path: Path) -> None:
    source = draw_clip(tmp_path / "clip.mp4", count=120)
    waiting = []

    def predict(frames: Iterable[RGB]) -> Iterator[Segmentation]:
        for result in halves(frames):
            waiting.append(len(clip.times))  # read, and not yet written
            yield result

    with open_clip(source) as clip:
        assert clip.length == 120
        overlay_clip(clip, tmp_path / "overlay.mp4", predict)
    assert len(waiting) == 120
    assert max(waiting) < 10


# --- class ids and confidence -------------------------------------------------------------------


def grey_frames(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    return [frame.to_ndarray() for frame in decoded], [frame.time for frame in decoded]


def many(frames: Iterable[RGB], classes: int = 256) -> Iterator[Segmentation]:
    """Stands in for a network: every id there is, and another confidence in each frame."""
    for index, frame in enumerate(frames):
        ids = np.random.default_rng(index).integers(0, classes, frame.shape[:2])
        mask = ids.astype(np.uint8 if classes <= 256 else np.uint16)
        sure = np.linspace(0, 1, mask.size, dtype=np.float32).reshape(mask.shape)
        yield Segmentation(mask, ("a",) * classes, ((1, 2, 3),) * classes, frame, sure)


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
@pytest.mark.parametrize("classes", [256, 300])
def test_a_mask_clip_holds_the_very_ids(classes: int, size: tuple[int, int], tmp_path: Path) -> None:
    times = [0, 40, 50, 500]
    source = draw_clip(tmp_path / "clip.mkv", count=4, size=size, times=times)
    targets = {kind: tmp_path / "out" / f"{kind}.mkv" for kind in ("mask", "confidence", "overlay")}
    with open_clip(source) as clip:
        assert write_clips(clip, targets, lambda frames: many(frames, classes)).frames == 4
    expected = list(many(frames_of(source)[0], classes))
    masks, shown = grey_frames(targets["mask"])
    assert shown == pytest.approx([time / 1000 for time in times])
    for mask, result in zip(masks, expected, strict=True):
        assert mask.dtype == result.mask.dtype
        np.testing.assert_array_equal(mask, result.mask)
    for grey, result in zip(grey_frames(targets["confidence"])[0], expected, strict=True):
        np.testing.assert_array_equal(grey, np.asarray(result.confidence_image()))
    if classes == 256:  # a reader that asks for colours gets the ids three times
        for frame, result in zip(frames_of(targets["mask"])[0], expected, strict=True):
            np.testing.assert_array_equal(frame, np.repeat(result.mask[..., None], 3, 2))
    assert len(frames_of(targets["overlay"])[0]) == 4
    assert sorted(path.name for path in targets["mask"].parent.iterdir()) == [
        "confidence.mkv",
        "mask.mkv",
        "overlay.mkv",
    ]


# --- what is broken -----------------------------------------------------------------------------


def test_of_a_truncated_clip_what_there_is(tmp_path: Path) -> None:
    source = draw_clip(tmp_path / "clip.mp4", count=100, movflags="faststart")
    source.write_bytes(source.read_bytes()[: -source.stat().st_size // 3])
    trouble = overlaid(source, tmp_path / "overlay.mp4")
    assert trouble is not None
    assert "of 4.0 seconds" in trouble
    assert 20 < len(frames_of(tmp_path / "overlay.mp4")[0]) < 90


def test_damaged_pieces_are_passed_over(tmp_path: Path) -> None:
    source = draw_clip(tmp_path / "clip.mkv", count=60)
    content = bytearray(source.read_bytes())
    for at in range(len(content) // 2, len(content) * 3 // 4, 41):
        content[at] ^= 0x55
    source.write_bytes(content)
    trouble = overlaid(source, tmp_path / "overlay.mp4")
    assert trouble is not None
    assert "damaged pieces were passed over (Invalid data" in trouble
    assert 10 < len(frames_of(tmp_path / "overlay.mp4")[0]) < 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"No such file or directory\); check the path"),
        (b"", "expected a whole video file"),
        (b"hello" * 100, "expected a whole video file"),
        (b"#EXTM3U\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n", "expected a whole video file"),
        (b"ffconcat version 1.0\nfile clip.ts\n", "cannot be read|holds no video|no frame"),
        ("without its index", "cannot be read|holds no video|no frame"),
        ("large", r"frames of 64x48 pixels, more than the limit of 100; .* ZOO_SEG_MAX_PIXELS"),
    ],
    ids=["missing", "empty", "text", "playlist", "concat", "cut", "large"],
)
def test_no_video_no_result(
    content: bytes | str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.mp4"
    draw_clip(tmp_path / "clip.ts")
    if isinstance(content, str):
        whole = draw_clip(path, count=60).read_bytes()
        path.write_bytes(whole if content == "large" else whole[: len(whole) // 2])
    elif content is not None:
        path.write_bytes(content)
    if content == "large":
        monkeypatch.setenv("ZOO_SEG_MAX_PIXELS", "100")
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match=message) as caught:
        overlaid(path, tmp_path / "overlay.mp4")
    assert str(caught.value).startswith(f"{path}: ")
    assert {each.name for each in tmp_path.iterdir()} <= {"clip.mp4", "clip.ts"}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="a limit of POSIX stands in for the full disk")
    source = draw_clip(tmp_path / "clip.mp4", count=100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"overlay\.mp4: cannot be written \(File too large\)"):
            overlaid(source, tmp_path / "overlay.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [each.name for each in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_target_is_a_kind_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"overlay\.webm: a clip is written as \.mp4"):
        overlaid(draw_clip(tmp_path / "clip.mp4"), tmp_path / "overlay.webm")


# --- on the command line ------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predict(capfd: pytest.CaptureFixture[str], zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`zoo-seg predict ...` with the toy weights, in a folder of its own that holds clip.mp4."""
    monkeypatch.chdir(tmp_path)
    draw_clip(tmp_path / "clip.mp4", sound=True)

    def predict(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["predict", *arguments, "--weights", "toy_r50.toys"])
        return code, *capfd.readouterr()

    return predict


def test_predict_of_a_clip(predict: Run) -> None:
    said = "1 done; 12 frames without the sound in overlay.mp4\n"
    assert predict("clip.mp4", "--out", "overlay.mp4", "--alpha", "1", "--batch-size", "5") == (0, said, "")
    model = zoo_seg.create_model("toy_r50", "toys")
    pairs = zip(frames_of(Path("clip.mp4"))[0], frames_of(Path("overlay.mp4"))[0], strict=True)
    for before, after in pairs:
        expected = np.asarray(model.predict(before).colorize(), np.int16)
        assert np.abs(after - expected).mean() < 20 < np.abs(after.astype(np.int16) - before).mean()


def test_save_of_a_clip(predict: Run) -> None:
    names = "out/clip_overlay.mp4, out/clip_mask.mkv, out/clip_confidence.mkv"
    said = f"1 done; 12 frames without the sound in {names}\n"
    assert predict("clip.mp4", "--save", "mask,confidence,overlay", "--batch-size", "5") == (0, said, "")
    model = zoo_seg.create_model("toy_r50", "toys")
    found = model.predict(frames_of(Path("clip.mp4"))[0], confidence=True)
    masks, sure = (grey_frames(Path(f"out/clip_{kind}.mkv"))[0] for kind in ("mask", "confidence"))
    assert (np.array(masks) == [result.mask for result in found]).mean() > 0.999  # batches round otherwise
    assert np.abs(np.array(sure) / 255 - [result.confidence for result in found]).max() < 0.01
    assert len(np.unique(masks)) > 1


def test_predict_of_a_broken_clip(predict: Run) -> None:
    path = draw_clip(Path("long.mkv"), count=80)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, out, err = predict("long.mkv", "--json", "-")
    assert code == 1
    assert "zoo-seg: long.mkv: it ends after " in err
    ((failure,), done) = (json.loads(out)[key] for key in ("failed", "done"))
    assert failure["picture"] == "long.mkv"
    assert "what could be decoded is in out/long_overlay.mp4" in failure["reason"]
    assert done == []
    assert len(frames_of(Path("out/long_overlay.mp4"))[0]) > 10


def test_a_clip_that_cannot_be_read_fetches_no_weights(predict: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo_seg.cli.clip.load_predicting", lambda _: pytest.fail("it was loaded"))
    assert predict("missing.mp4") == (
        1,
        "1 failed; nothing was written\n",
        "zoo-seg: missing.mp4: cannot be read (No such file or directory); check the path\n",
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clip.mp4 a.png", "found 2 paths; a clip is predicted by itself"),
        ("clip.mp4 --legend", "--legend is for images"),
        ("clip.mp4 --no-overlay", "--no-overlay is for images"),
        ("clip.mp4 --out clip.mp4 --overwrite", "--out clip.mp4 is the clip itself"),
        ("clip.mp4 --save coco", "--save 'coco': known are overlay, mask, confidence"),
        ("clip.mp4 --save mask --out mask.mp4", "a clip of mask is written as .mkv"),
        ("clip.mp4 --save mask,overlay --out both.mkv", "both.mkv is one file, but 2 are written (overlay, mask)"),
        ("clip.mp4 --out there.mp4", "there.mp4 is there already; choose another --out, or add --overwrite"),
        ("clip.mp4 --out overlay.webm", "a clip is written as .mp4"),
        ("clip.mp4 --out note.txt", "note.txt is a file; expected a folder"),
        ("clip.mp4 --alpha 2", "from 0 to 1"),
        ("clip.mp4 --scales 0", "expected positive numbers"),
    ],
)
def test_careless_command_lines(line: str, message: str, predict: Run) -> None:
    for name in ("there.mp4", "note.txt"):
        Path(name).write_text("mine")
    before = Path("clip.mp4").read_bytes()
    code, out, err = predict(*line.split())
    assert (code, out) == (2, "")
    assert err.startswith("zoo-seg: error: ")
    assert message in err
    assert Path("clip.mp4").read_bytes() == before
    assert Path("there.mp4").read_text() == "mine"


def test_without_the_extra_the_command_is_named(predict: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(zoo_seg.cli, "clip", raising=False)
    for name in ("zoo_seg.cli.clip", "zoo_seg.inference.video"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "av", None)
    code, out, err = predict("clip.mp4")
    assert (code, out) == (1, "")
    assert "pip install 'zoo_seg[video]'" in err
