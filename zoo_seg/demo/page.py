"""The page: controls on the left, results on the right. Nothing in it asks any other host."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo_seg.demo.gate import LARGEST_FILE, Gate, Hosts, Upload, host_name
from zoo_seg.demo.networks import Networks
from zoo_seg.demo.view import View, message_html, results_html
from zoo_seg.errors import MissingExtraError, ZooSegError
from zoo_seg.images.reading import drawn_street

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: it looks for newer versions of itself then
try:
    import gradio as gr
    from gradio.utils import get_space, get_upload_folder
    from starlette.middleware import Middleware
except ImportError as error:
    raise MissingExtraError(f"the web page needs gradio ({error}); pip install 'zoo_seg[demo]'") from None

_FOLDER = Path(__file__).resolve().parent
_KEPT = 3600
"""Seconds that an uploaded image stays on the disk, at most; and seconds between clearings."""
_AT_ONCE, _WAITING = 16, 200
"""Requests that are worked on, of which few download and the others end soon, and that wait."""
_MOST_PIXELS = 64_000_000
"""Of an image, where `ZOO_SEG_MAX_PIXELS` does not say: one visitor shall not take all time and memory."""
_NONE = ""
_HEAD = """<div class="zoo-head"><h1>zoo_seg</h1>
<p>Drop or paste an image and choose a network. Move over the result to read its classes.</p></div>"""


async def _as_sent(function: Any, inputs: list[Any], *_: Any, **__: Any) -> list[Any]:
    """In place of gradio's own preparation, which fetches the addresses and moves the files that a request names."""
    if len(inputs) != len(function.inputs):
        raise gr.Error(f"found {len(inputs)} inputs, expected {len(function.inputs)}", print_exception=False)
    return inputs


def page(networks: Networks | None = None) -> gr.Blocks:
    """The page, to be served by `launch`. It shows the drawn street as the default network sees it.

    Args:
        networks: those that can be chosen; None is every published one.

    Raises:
        ZooSegError: the default network cannot be had or cannot see an image.
    """
    chosen = networks or Networks()
    drawn = drawn_street()
    street = None if drawn is None else str(drawn)
    if street:
        chosen.predict(street, chosen.default)  # a network that cannot do it is told of before the page is opened

    fetched = gr.Progress(track_tqdm=True)

    names = chosen.names()
    folder = Path(get_upload_folder())

    def show(sent: Any, first: Any, second: Any, _: gr.Progress = fetched) -> str:
        path = sent.get("path") if isinstance(sent, dict) else None
        if first not in names or second not in (_NONE, *names):
            return message_html("There are no such weights: choose others.", alarm=True)
        return show_html(chosen, Upload(path, folder) if isinstance(path, str) else None, first, second)

    blocks: gr.Blocks
    with gr.Blocks(title="zoo_seg", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as blocks:
        gr.HTML(_HEAD, elem_id="zoo-head")
        with gr.Row():
            with gr.Column(scale=1, min_width=340):
                image = gr.Image(
                    street,
                    label="Image",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=240,
                    elem_id="zoo-input",
                    buttons=[],
                    alt_text="the image",
                )
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
                results = gr.HTML(show({"path": street}, chosen.default, _NONE), elem_id="zoo-output")
        example.click(
            lambda: street, None, image, api_visibility="private"
        )  # not gr.Examples, which makes a new gr.Image
        opacity.input(None, opacity, None, js="(percent) => window.zooOpacity(percent)")
        gr.on(
            [image.change, first.input, second.input],
            show,
            [image, first, second],
            results,
            trigger_mode="always_last",
            concurrency_limit=_AT_ONCE,
            api_visibility="private",
        )
    blocks.preprocess_data = _as_sent  # type: ignore[method-assign, assignment]
    page: gr.Blocks = blocks.queue(max_size=_WAITING)
    return page


def show_html(networks: Networks, image: Upload | None, first: str, second: str = _NONE) -> str:
    """What one or two networks make of an image file; whatever goes wrong is a message in its place."""
    if image is None:
        return message_html("No image yet: drop one, paste one, or take the drawn street.")
    try:
        networks.image(image)
    except Exception as error:
        return message_html(_reason(error), alarm=True)
    names = dict.fromkeys(name for name in (first, second) if name != _NONE)
    return results_html([_view(networks, image, name) for name in names], Path(str(image)).stem)


def _view(networks: Networks, image: Upload, name: str) -> View:
    facts = networks.facts(name)
    try:
        return View(name, facts, networks.predict(image, name))
    except Exception as error:  # of one network: the other one's result stands
        return View(name, facts, _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, (ZooSegError, OSError)):
        return str(error)
    return f"Unexpected {type(error).__name__}: {str(error)[:500]}"


def launch(
    blocks: gr.Blocks,
    *,
    host: str | None = None,
    port: int | None = None,
    allow_hosts: Sequence[str] = (),
    share: bool = False,
    **options: Any,
) -> str:
    """Serve a page and return its address.

    It answers to localhost, to the host it is bound to and, bound to all (0.0.0.0), to the machine's addresses and
    name; on a Space, to whatever the Hub's proxy sends.

    Args:
        host, port: None is what gradio's environment says (on a Space), else 127.0.0.1 and the first port that is free.
        allow_hosts: more names that it answers to, such as that of a proxy in front.
        share: make a link for others, by gradio's server.
        options: of `gradio.Blocks.launch`.

    Raises:
        OptionError: one of `allow_hosts` is no name.
    """
    os.environ.setdefault("ZOO_SEG_MAX_PIXELS", str(_MOST_PIXELS))
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files: visitors are told what cannot be read
    bound = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    hosts = None if get_space() else Hosts(bound, allow_hosts)
    gate = Middleware(Gate, hosts=hosts, uploads=Path(get_upload_folder()))
    system = ["system-ui", "sans-serif"]  # gradio's own themes fetch their fonts
    theme = gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])
    theme.set(block_info_text_color="*neutral_500")  # its own grey is too light to read
    for name in ("NO_PROXY", "no_proxy"):  # gradio asks its own server whether it is there
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost,127.0.0.1,::1")))
    _, address, link = blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        ssr_mode=False,
        app_kwargs={"middleware": [gate]},
        allowed_paths=[str(path) for path in [drawn_street()] if path],
        footer_links=[],
        run_history=False,
        max_file_size=LARGEST_FILE,
        theme=theme,
        css_paths=_FOLDER / "page.css",
        head=f"<script>{(_FOLDER / 'page.js').read_text(encoding='utf-8')}</script>",
        **options,
    )
    if hosts and link:
        hosts.allowed.add(host_name(link))
    return address
