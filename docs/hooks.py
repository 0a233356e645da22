"""What the pages show of the repository itself, put in when MkDocs builds them, so that nothing is typed twice.

Every family has a page of its own, made of its docstrings and the manifest. Any other page asks by a comment on a line
of its own: `<!-- zoo -->` is the table of the manifest's weights, `<!-- sources -->` that of who published them,
`<!-- help -->` the command line's help, `<!-- file: NAME -->` a file of the repository without its title.
"""

from __future__ import annotations

import html
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from zoo_seg.cli.main import _parser
from zoo_seg.families.registry import find_family, list_families
from zoo_seg.manifest import File, Manifest, Metric, Model, Weights, published_manifest, read_manifest

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = {
    # heading: how a click sorts it
    "id": "text",
    "mIoU %": "number",
    "parameters": "number",
    "classes": "number",
    "file": "number",
    "model": "text",
    "data set": "text",
    "source": "text",
    "licence: code": "text",
    "licence: weights": "text",
    "terms of the data": "text",
    "links": "",
}


def on_config(config: Any) -> Any:
    """MkDocs' event: a page for every family joins the navigation."""
    pages = [{_title(name): f"families/{name}.md"} for name in list_families()]
    config["nav"].insert(1, {"Families": pages})
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """MkDocs' event: the families' pages, which no file holds."""
    from mkdocs.structure.files import File as Page

    for name in list_families():
        files.append(Page.generated(config, f"families/{name}.md", content=family_page(name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' event: a page's text before it becomes HTML."""
    markdown = re.sub(r"^<!-- zoo -->$", lambda _: zoo_table(), markdown, flags=re.MULTILINE)
    markdown = re.sub(r"^<!-- sources -->$", lambda _: sources_table(), markdown, flags=re.MULTILINE)
    markdown = re.sub(r"^<!-- help -->$", lambda _: "\n".join(help_pages()), markdown, flags=re.MULTILINE)
    return re.sub(r"^<!-- file: (\S+) -->$", lambda found: body(ROOT / found[1]), markdown, flags=re.MULTILINE)


def body(path: Path) -> str:
    """A Markdown file without its first heading."""
    return path.read_text(encoding="utf-8").split("\n", 1)[1]


# --- the zoo --------------------------------------------------------------------------------------


def zoo_table(family: str | None = None) -> str:
    """A row for every weight, or a family's; `sort.js` sorts by `data-key`, or by the text where there is none."""
    manifest = read_manifest(published_manifest())
    records = [each for each in manifest.weights.values() if family in (None, each.architecture.family)]
    headings = "".join(f'<th data-sort="{kind}">{heading}</th>' for heading, kind in COLUMNS.items())
    rows = "\n".join(f"<tr>{''.join(_cells(record, manifest))}</tr>" for record in records)
    return f'<div id="zoo"><table><thead><tr>{headings}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def sources_table() -> str:
    """A row for everyone who published weights: how many, of what, from where, under which licence."""
    manifest = read_manifest(published_manifest())
    lines = [
        "| source | weights | families | hosts | containers | licence of the weights |",
        "|---|---|---|---|---|---|",
    ]
    for name, source in manifest.sources.items():
        records = [each for each in manifest.weights.values() if each.source == name]
        files = [file for each in records for file in each.files]
        hosts = dict.fromkeys("in the package" if file.packaged else _host(file.url) for file in files)
        hosts |= dict.fromkeys(_host(each.url) for each in source.hosts)
        hosts |= dict.fromkeys(_host(mirror) for file in files for mirror in file.mirrors)
        families = dict.fromkeys(find_family(each.architecture.family).title for each in records)
        endings = dict.fromkeys(f"`{Path(file.name).suffix}`" for file in files)
        licences = dict.fromkeys(html.escape(each.licence.weights or "not stated") for each in records)
        cells = [
            f"[{source.title}]({source.url})",
            str(len(records)),
            *map(", ".join, (families, hosts, endings, licences)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _host(url: str) -> str:
    return "huggingface.co" if url.startswith("hf://") else url.split("/")[2]


def _cells(record: Weights, manifest: Manifest) -> Iterator[str]:
    """The cells of a row, in the order of COLUMNS."""
    model, dataset = manifest.models[record.model], manifest.datasets[record.dataset]
    source = manifest.sources[record.source]
    size = record.files[0].size
    yield _cell(f"<code>{record.id}</code>")
    yield _cell("".join(map(_metric, record.metrics)), record.miou or 0)
    yield _cell(f"{record.parameters / 1e6:.1f} M", record.parameters)
    yield _cell(str(record.num_classes), record.num_classes)
    yield _cell(f"{size / 1e6:.1f} MB" if size else "not stated", size or 0)
    yield _cell(_link(model.paper, record.model))
    yield _cell(_link(dataset.url, dataset.title))
    yield _cell(_link(source.url, source.title))
    for licence in (record.licence.code, record.licence.weights, record.licence.data):
        yield _cell(html.escape(licence or "not stated"))
    yield _cell(" ".join(_links(record)))


def _metric(metric: Metric) -> str:
    """The number, whose it is, and how it was measured."""
    scales = metric.test.scales
    protocol = [
        metric.split,
        metric.test.mode,
        "one scale" if scales == (1.0,) else f"{len(scales)} scales",
        *(["flip"] if metric.test.flip else []),
    ]
    who = "reported" if metric.status == "reported" else "measured with zoo_seg"
    return f"<b>{metric.value:.2f}</b><small>{who}: {', '.join(protocol)}</small>"


def _links(record: Weights) -> Iterator[str]:
    for file in record.files:
        yield from _file_links(file)
    yield from (
        _link(url, name)
        for name, url in (("config", record.provenance.config_url), ("log", record.provenance.log_url))
        if url
    )


def _file_links(file: File) -> Iterator[str]:
    if file.packaged:
        yield "in the package"
        return
    for name, url in (("file", file.url), *(("mirror", url) for url in file.mirrors)):
        yield _link(url if url.startswith("https://") else None, name)


def _link(url: str | None, text: str) -> str:
    text = html.escape(text)
    return f'<a href="{html.escape(url)}">{text}</a>' if url else text


def _cell(content: str, key: float | None = None) -> str:
    return f"<td>{content}</td>" if key is None else f'<td data-key="{key}">{content}</td>'


# --- the command line -----------------------------------------------------------------------------


def help_pages() -> Iterator[str]:
    """`zoo-seg --help`, then that of every verb."""
    with patch.dict(os.environ, {"COLUMNS": "98", "NO_COLOR": "1"}):
        parser = _parser()
        yield f"```text\n{parser.format_help()}```\n"
        (verbs,) = (action for action in parser._actions if action.dest == "verb")
        for name, verb in (verbs.choices or {}).items():
            yield f"## {name}\n\n```text\n{verb.format_help()}```\n"


# --- the families ---------------------------------------------------------------------------------


def _title(name: str) -> str:
    return find_family(name).title


def family_page(name: str) -> str:
    """What a family is, its networks, its weights, and what its head and its options are."""
    family, manifest = find_family(name), read_manifest(published_manifest())
    module = importlib.import_module(family.options.__module__)
    models = [model for model in manifest.models.values() if model.architecture.family == name]
    lines = [f"# {family.title}", (module.__doc__ or "").strip()]
    if models:
        records = [record for record in manifest.weights.values() if record.architecture.family == name]
        example = max(records, key=lambda record: record.miou or 0)
        lines += [
            f'```python\nimport zoo_seg\n\nmodel = zoo_seg.{example.model}(pretrained="{example.tag}")\n```',
            "## Networks",
            "| name | network | GMac at 512x512 | seconds at 512x683 |\n|---|---|---|---|\n"
            + "\n".join(map(_model, models)),
            "## Weights",
            zoo_table(name),
        ]
    lines += ["## In a network of your own", f"::: {module.__name__}.{family.options.__name__}"]
    return "\n\n".join(lines) + "\n"


def _model(model: Model) -> str:
    work = f"{model.multiply_adds / 1e9:.1f}" if model.multiply_adds else "unknown"
    return f"| `{model.name}` | {model.title} | {work} | {model.seconds or 'not measured'} |"


def family_table() -> str:
    """A row for every family of the published weights: the best reported mIoU a data set, and what to type for it.

    The README carries it; a test holds the two together.
    """
    manifest = read_manifest(published_manifest())
    rows: dict[str, list[Weights]] = {}
    for record in manifest.weights.values():
        if record.files[0].packaged is None:
            rows.setdefault(record.architecture.family, []).append(record)
    datasets = ("ade20k", "cityscapes", "voc")
    lines = [
        f"| family | {' | '.join(manifest.datasets[name].title for name in datasets)} | parameters | type |",
        "|---|---|---|---|---|---|",
    ]
    for records in rows.values():
        title = find_family(records[0].architecture.family).title
        best = [max((each.miou or 0 for each in records if each.dataset == name), default=0) for name in datasets]
        sizes = [record.parameters / 1e6 for record in records]
        first = max(records, key=lambda record: (record.dataset == "ade20k", record.miou or 0))
        lines.append(
            f"| {title} ({len(records)}) | {' | '.join(f'{value:.2f}' if value else '' for value in best)} "
            f"| {' to '.join(dict.fromkeys(f'{each:.1f}' for each in (min(sizes), max(sizes))))} M "
            f"| `{first.model}`, `{first.tag}` |"
        )
    return "\n".join(lines)
