"""The documentation: it builds strictly, loads nothing from elsewhere, and what it tells to type can be typed."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import REPOSITORY

import zoo_seg
from zoo_seg.cli.main import _parser
from zoo_seg.families.registry import find_family, list_families
from zoo_seg.manifest import load_manifest, published_manifest, read_manifest

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("benchmarks/*.md")])
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """The code blocks of a page in these languages."""
    for found in FENCE.finditer(path.read_text(encoding="utf-8")):
        if found["language"] in languages:
            yield textwrap.dedent(found["body"])


# --- the site -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ZOO_SEG_")}
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**environment, "PYTHONPATH": str(REPOSITORY), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


class Resources(HTMLParser):
    """What a browser fetches to show a page, and the text of the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.rows = 0
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.rows += tag == "tr"
        if tag == "link":
            self.found.append(values.get("href") or "")
        elif tag != "a":
            self.found += [values[key] or "" for key in ("src", "srcset", "data", "poster") if key in values]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.slow
def test_every_weight_has_its_row_in_the_zoo(site: Path) -> None:
    page, records = Resources(site / "zoo.html"), load_manifest().weights
    assert page.rows == len(records) + 1 + len(load_manifest().sources) + 1  # two tables
    shown = set(page.texts)
    for record in records.values():
        assert record.id in shown
        assert {f"{metric.value:.2f}" for metric in record.metrics} <= shown
        licences = record.licence.code, record.licence.weights, record.licence.data
        assert {licence or "not stated" for licence in licences} <= shown


@pytest.mark.slow
def test_every_verb_has_its_help(site: Path) -> None:
    text = "".join(Resources(site / "reference" / "cli.html").texts)
    assert all(f"usage: zoo-seg {verb} [-h]" in text for verb in verbs())


@pytest.mark.slow
@pytest.mark.parametrize("family", list_families())
def test_every_family_has_its_page(site: Path, family: str) -> None:
    text = "".join(Resources(site / "families" / f"{family}.html").texts)
    records = [record for record in zoo_seg.list_weights() if record.architecture.family == family]
    assert all(record.id in text for record in records)
    assert find_family(family).options.__name__ in text


@pytest.mark.slow
def test_pages_load_nothing_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        foreign = [link for link in Resources(page).found if re.match(r"(\w+:)?//", link)]
        assert not foreign, f"{page.name}: {foreign}"
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_site_can_be_searched_from_a_folder(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    found = {page["location"].partition("#")[0] for page in json.loads(index.removeprefix("var __index = "))["docs"]}
    assert {"zoo.html", "finetuning.html", "reference/networks.html"} <= found
    assert "assets/iframe-worker.js" in Resources(site / "index.html").found


@pytest.mark.slow
def test_pages_show_what_they_include(site: Path) -> None:
    assert not [page for page in site.rglob("*.html") if "&lt;!-- file" in page.read_text(encoding="utf-8")]
    assert "peak memory" in "".join(Resources(site / "benchmarks.html").texts)
    assert zoo_seg.__version__ in "".join(Resources(site / "changelog.html").texts)


# --- what stands in the pages ---------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_blocks_compile(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block, name(path), "exec")


def verbs() -> list[str]:
    (actions,) = (action for action in _parser()._actions if action.dest == "verb")
    return list(actions.choices or ())


def commands(path: Path) -> Iterator[tuple[list[str], bool]]:
    """The arguments of every `zoo-seg` that a page tells to type or shows as typed after a $, and whether it does so.

    Otherwise a sentence mentions it, and may leave out what goes without saying.
    """
    lines = [line for block in blocks(path, "sh") for line in _lines(block)]
    lines += [line[2:] for block in blocks(path, "text") for line in _lines(block) if line.startswith("$ ")]
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    mentions = [code for code in re.findall(r"`((?:zoo-seg|torchrun) [^`]+)`", text) if "..." not in code]
    for place, line in enumerate([*lines, *mentions]):
        words = shlex.split(re.sub(r"^torchrun .*-m zoo_seg ", "zoo-seg ", line), comments=True)
        while "&&" in words:
            words = words[words.index("&&") + 1 :]
        if words[:1] == ["zoo-seg"]:
            yield words[1:], place < len(lines)


def _lines(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_can_be_parsed(path: Path) -> None:
    for words, is_whole in commands(path):
        if words[0] == "VERB":
            words = [verbs()[0], *words[1:]]
        said = io.StringIO()
        try:
            with redirect_stderr(said), redirect_stdout(said):
                _parser().parse_args(words)
        except SystemExit as end:
            short = not is_whole and "the following arguments are required" in said.getvalue()
            assert end.code == 0 or short, f"zoo-seg {shlex.join(words)}: {said.getvalue()}"


def test_the_pages_hold_commands_and_code() -> None:
    assert sum(len(list(commands(path))) for path in PAGES) > 60
    assert sum(len(list(blocks(path, "python"))) for path in PAGES) > 25


def test_extras_exist() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(
        r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1].split("\n[")[0], re.MULTILINE
    )
    named = {extra for path in PAGES for extra in re.findall(r"zoo_seg\[(\w+)\]", path.read_text(encoding="utf-8"))}
    assert named <= set(extras)
    told = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"zoo_seg[{extra}]" in told for extra in extras if extra not in ("dev", "test", "docs", "all"))


def test_the_manifest_of_adding_a_weight_is_one(tmp_path: Path) -> None:
    (block,) = blocks(REPOSITORY / "docs" / "adding_a_weight.md", "json")
    (tmp_path / "cats.json").write_text(block, encoding="utf-8")
    manifest = read_manifest(tmp_path / "cats.json", read_manifest(published_manifest()))
    assert manifest.weights["pspnet_resnet50_os8.cats_acme"].classes == ("background", "cat", "dog")


def test_the_changelog_begins_with_this_version() -> None:
    first = next(
        line for line in (REPOSITORY / "CHANGELOG.md").read_text("utf-8").splitlines() if line.startswith("## ")
    )
    assert zoo_seg.__version__ in first


def test_the_readme_s_families_are_the_manifest_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import hooks

    assert hooks.family_table() in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_every_source_has_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import hooks

    manifest = read_manifest(published_manifest())
    rows = hooks.on_page_markdown("<!-- sources -->").splitlines()[2:]
    assert sum(int(row.split(" | ")[1]) for row in rows) == len(manifest.weights)
    for row, source in zip(rows, manifest.sources.values(), strict=True):
        assert source.title in row
        assert all(host.url.split("/")[2] in row for host in source.hosts)
