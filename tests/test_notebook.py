"""What a notebook shows of a result and of a record."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import zoo_seg
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.manifest import Licence

pytestmark = pytest.mark.slow

EVIL = "<img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """The text and the tags of a piece of HTML that closes what it opens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def result(height: int, width: int, classes: int = 4, picture: bool = True) -> Segmentation:
    mask = np.arange(height * width, dtype=np.int64).reshape(height, width) % classes
    names = (EVIL, *(f"class {i}" for i in range(1, classes)))
    colours = tuple((20 * i % 256, 90, 160) for i in range(classes))
    pixels = np.full((height, width, 3), 200, np.uint8) if picture else None
    return Segmentation(mask.astype(np.uint8), names, colours, pixels)


@pytest.mark.parametrize("picture", [True, False])
def test_a_result_is_an_overlay_with_its_legend(picture: bool) -> None:
    shown = result(60, 80, picture=picture)
    with Image.open(io.BytesIO(shown._repr_png_())) as image:
        assert image.format == "PNG"
        assert image.width > 80
        assert image.height >= 60
        left = image.convert("RGB").crop((0, 0, 80, 60))
        expected = shown.overlay() if picture else shown.colorize()
        np.testing.assert_array_equal(np.asarray(left), np.asarray(expected))

    page = Page(shown._repr_html_())
    assert EVIL in "".join(page.texts)
    assert "25.0 %" in page.texts
    ((_, attributes),) = [each for each in page.tags if each[0] == "img"]
    head, _, data = str(attributes["src"]).partition(",")
    assert head == "data:image/jpeg;base64"
    assert attributes.keys() == {"alt", "src", "style"}
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (80, 60)
    assert all(tag != "script" and not any(name.startswith("on") for name in found) for tag, found in page.tags)
    assert re.search("background:#3c5aa0", shown._repr_html_())


def test_a_large_result_is_shown_small() -> None:
    shown = result(600, 2500, classes=40)
    assert len(shown._repr_html_()) < 1_000_000
    with Image.open(io.BytesIO(shown._repr_png_())) as image:
        assert image.height < 800
        assert image.width < 2000
    texts = Page(shown._repr_html_()).texts
    assert "and 16 more" in texts
    assert shown.mask.shape == (600, 2500)


def test_a_record_is_a_small_table() -> None:
    record = zoo_seg.get_weights("pspnet_r50_os8", "ade20k")
    page = Page(record._repr_html_())
    text = "|".join(page.texts)
    assert page.texts[0] == record.id
    assert f"{record.miou} % on val (reported" in text
    assert "150 classes" in text
    assert ("a", {"href": record.files[0].url}) in page.tags
    assert record.files[0].name in page.texts
    assert str(record.licence.data) in text
    assert "None" not in text
    assert len(record._repr_html_()) < 4000


def test_a_record_s_words_stay_words() -> None:
    record = zoo_seg.get_weights("pspnet_r50_os8", "ade20k")
    file = replace(record.files[0], url="file:///tmp/x.pth", size=2_500_000)
    evil = replace(
        record,
        id=EVIL,
        dataset=EVIL,
        classes=(EVIL, *record.classes[1:]),
        metrics=(replace(record.metrics[0], name=EVIL, split=EVIL),),
        files=(file, replace(file, url=f"https://zoo.invalid/{EVIL}/x.pth")),
        licence=Licence(EVIL, EVIL, EVIL),
    )
    page = Page(evil._repr_html_())
    assert "".join(page.texts).count(EVIL) == 8
    assert {tag for tag, _ in page.tags} == {"table", "caption", "b", "tbody", "tr", "th", "td", "a"}
    ((_, link),) = [each for each in page.tags if each[0] == "a"]  # none to a file of this machine
    assert link == {"href": f"https://zoo.invalid/{EVIL}/x.pth"}
    assert "2.5 MB" in "".join(page.texts)
