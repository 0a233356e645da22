"""Whether the links of a manifest answer, without downloading what is behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from zoo_seg import settings
from zoo_seg.hub.download import MAX_REDIRECTS, shown
from zoo_seg.hub.files import file_path
from zoo_seg.hub.privacy import no_telemetry
from zoo_seg.manifest import File
from zoo_seg.version import __version__

if TYPE_CHECKING:  # imported where a link is really asked
    import requests

AT_ONCE = 16
"""Links asked at a time."""
TIMEOUT = 20.0
"""Seconds to wait for a connection, and for each answer."""
_HEADERS = {"User-Agent": f"zoo_seg/{__version__}", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Answer:
    """What a link said."""

    url: str
    ok: bool
    status: str
    """`HTTP 200`, or why there is no answer."""
    size: int | None = None
    """Bytes, where the answer tells."""


def ask_all(urls: Iterable[str], *, timeout: float = TIMEOUT) -> dict[str, Answer]:
    """Ask every link once, several at a time."""
    unique = list(dict.fromkeys(urls))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(unique, pool.map(lambda url: ask(url, timeout=timeout), unique), strict=True))


def ask(url: str, *, timeout: float = TIMEOUT) -> Answer:
    """What a link says: `https://` (redirected to https only), `hf://`, `file://` or `package://`."""
    scheme = url.partition(":")[0]
    if scheme in ("file", "package"):
        return _look(url)
    if settings.offline():
        return Answer(url, False, "not asked: offline")
    return _ask_hub(url, timeout) if scheme == "hf" else _ask_web(url, timeout)


def _look(url: str) -> Answer:
    try:
        size = (File(url).packaged or file_path(url)).stat().st_size
    except OSError as error:
        return Answer(url, False, error.strerror or "no file")
    return Answer(url, True, "a file", size)


def _ask_web(url: str, timeout: float) -> Answer:
    """HEAD; where a server refuses that (a signed link may), a GET whose body is not read."""
    import requests

    try:
        response = _head(url, "HEAD", timeout)
        if response.status_code in (403, 405, 501):
            response = _head(url, "GET", timeout)
    except (requests.RequestException, ValueError, OSError) as error:
        return Answer(url, False, _reason(error))
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if response.ok and kind in ("text/html", "application/xhtml+xml"):
        return Answer(url, False, "a web page")
    length = response.headers.get("Content-Length", "")
    size = int(length) if response.ok and length.isdecimal() else None
    return Answer(url, response.ok, f"HTTP {response.status_code}", size)


def _head(url: str, method: str, timeout: float) -> requests.Response:
    """Follow redirects by hand, each with a request of its own, to https only."""
    import requests

    for _ in range(MAX_REDIRECTS + 1):
        if urlsplit(url).scheme != "https":
            raise ValueError(f"redirected to {shown(url)}; only https is used")
        response = requests.request(method, url, headers=_HEADERS, timeout=timeout, allow_redirects=False, stream=True)
        response.close()
        if not response.is_redirect:
            return response
        url = urljoin(url, response.headers["Location"])
    raise ValueError(f"redirected more than {MAX_REDIRECTS} times")


def _ask_hub(url: str, timeout: float) -> Answer:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    no_telemetry()
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", url)
    if not match:
        return Answer(url, False, "expected hf://organisation/repository[@revision]/path")
    repository, revision, name = match.groups()
    try:
        link = hf_hub_url(repository, unquote(name), revision=unquote(revision) if revision else None)
        metadata = get_hf_file_metadata(link, timeout=timeout)
    except Exception as error:  # of many kinds, differing by version
        status = getattr(getattr(error, "response", None), "status_code", None)
        return Answer(url, False, f"HTTP {status}" if status else type(error).__name__)
    return Answer(url, True, "HTTP 200", metadata.size)


def _reason(error: Exception) -> str:
    """In a few words, without the link, which may be signed."""
    import requests

    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "no valid certificate"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error) if type(error) is ValueError else type(error).__name__
