"""The page: controls on the left, results on the right. Nothing in it asks any other host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from zoo_seg.demo.networks import Networks
from zoo_seg.demo.view import View, message_html, results_html
from zoo_seg.errors import MissingExtraError, ZooSegError
from zoo_seg.images.reading import drawn_street

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: it looks for newer versions of itself then
try:
    import gradio as gr
    from gradio.data_classes import ImageData
except ImportError as error:
    raise MissingExtraError(f"the web page needs gradio ({error}); pip install 'zoo_seg[demo]'") from None

_FOLDER = Path(__file__).resolve().parent
_LARGEST_FILE = "100mb"
_KEPT = 3600
"""Seconds that an uploaded picture stays on the disk, at most; and seconds between clearings."""
_NONE = ""
_HEAD = """<div class="zoo-head"><h1>zoo_seg</h1>
<p>Drop or paste a picture and choose a network. Move over the result to read its classes.</p></div>"""


def _path(payload: ImageData | None) -> str | None:
    """The file as it came: zoo_seg reads it, and says what is wrong with it."""
    return payload.path if payload else None


def page(networks: Networks | None = None) -> gr.Blocks:
    """The page, to be served by `launch`. It shows the drawn street as the default network sees it.

    Args:
        networks: those that can be chosen; None is every published one.

    Raises:
        ZooSegError: the default network cannot be had or cannot see a picture.
    """
    chosen = networks or Networks()
    drawn = drawn_street()
    street = None if drawn is None else str(drawn)
    if street:
        chosen.predict(street, chosen.default)  # a network that cannot do it is told of before the page is opened

    fetched = gr.Progress(track_tqdm=True)

    def show(picture: str | None, first: str, second: str, _: gr.Progress = fetched) -> str:
        return show_html(chosen, picture, first, second)

    names = chosen.names()
    blocks: gr.Blocks
    with gr.Blocks(title="zoo_seg", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as blocks:
        gr.HTML(_HEAD, elem_id="zoo-head")
        with gr.Row():
            with gr.Column(scale=1, min_width=340):
                picture = gr.Image(
                    street,
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=240,
                    elem_id="zoo-input",
                    buttons=[],
                    alt_text="the picture",
                )
                picture.preprocess = _path  # type: ignore[method-assign]  # not by a subclass: gradio writes a .pyi file beside every one
                first = gr.Dropdown(
                    names,
                    value=chosen.default,
                    label="Weights",
                    info="What is not on this machine yet is fetched once.",
                    elem_id="zoo-first",
                )
                second = gr.Dropdown(
                    [("none", _NONE), *((name, name) for name in names)],
                    value=_NONE,
                    label="Compare with",
                    elem_id="zoo-second",
                )
                opacity = gr.Slider(0, 100, 50, step=1, label="Opacity (%)", elem_id="zoo-opacity")
                example = gr.Button("Show the drawn street", size="sm", visible=street is not None)
            with gr.Column(scale=3, min_width=320):
                results = gr.HTML(show(street, chosen.default, _NONE), elem_id="zoo-output")
        example.click(
            lambda: street, None, picture, api_visibility="private"
        )  # not gr.Examples, which makes a new gr.Image
        opacity.input(None, opacity, None, js="(percent) => window.zooOpacity(percent)")
        gr.on(
            [picture.change, first.input, second.input],
            show,
            [picture, first, second],
            results,
            trigger_mode="always_last",
            concurrency_limit=1,
            api_visibility="private",
        )
    return blocks


def show_html(networks: Networks, picture: str | None, first: str, second: str = _NONE) -> str:
    """What one or two networks make of a picture file; whatever goes wrong is a message in its place."""
    if picture is None:
        return message_html("No picture yet: drop one, paste one, or take the drawn street.")
    try:
        networks.picture(picture)
    except Exception as error:
        return message_html(_reason(error, picture), alarm=True)
    names = dict.fromkeys(name for name in (first, second) if name != _NONE)
    return results_html([_view(networks, picture, name) for name in names], Path(picture).stem)


def _view(networks: Networks, picture: str, name: str) -> View:
    facts = networks.facts(name)
    try:
        return View(name, facts, networks.predict(picture, name))
    except Exception as error:  # of one network: the other one's result stands
        return View(name, facts, _reason(error, picture))


def _reason(error: Exception, picture: str) -> str:
    """The message, with the picture's name in place of where it was put on this machine."""
    if isinstance(error, (ZooSegError, OSError)):
        return str(error).replace(picture, Path(picture).name)
    return f"Unexpected {type(error).__name__}: {str(error)[:500]}"


def launch(blocks: gr.Blocks, *, host: str | None = None, port: int | None = None, **options: Any) -> str:
    """Serve a page, without a link for others, and return its address.

    Args:
        host, port: None is what gradio's environment says (on a Space), else 127.0.0.1 and the first port that is free.
        options: of `gradio.Blocks.launch`.
    """
    system = ["system-ui", "sans-serif"]  # gradio's own themes fetch their fonts
    theme = gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])
    theme.set(block_info_text_color="*neutral_500")  # its own grey is too light to read
    for name in ("NO_PROXY", "no_proxy"):  # gradio asks its own server whether it is there
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost,127.0.0.1,::1")))
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        allowed_paths=[str(path) for path in [drawn_street()] if path],
        footer_links=[],
        run_history=False,
        max_file_size=_LARGEST_FILE,
        theme=theme,
        css_paths=_FOLDER / "page.css",
        head=f"<script>{(_FOLDER / 'page.js').read_text(encoding='utf-8')}</script>",
        **options,
    )
    return address
