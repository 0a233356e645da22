"""Bytes from the first source that gives them whole: https://, file://, hf://, and http:// where it is allowed.

`download` walks the sources. A transport (`_from_web`, `_from_file`, `_from_hub`) fills a `Partial`, a file that
belongs to this process alone; the whole is checked and moved into place in one step. Nothing here knows of records.
"""

from __future__ import annotations

import errno
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from datetime import datetime, timezone
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from zoo_seg.errors import DownloadError, HashMismatchError
from zoo_seg.hub.files import check_weight_file, describe, file_path
from zoo_seg.hub.partial import MAX_UNPUBLISHED, Partial, Unfit, Version, http_date
from zoo_seg.hub.privacy import no_telemetry
from zoo_seg.hub.refusals import explain, plain, symptom

if TYPE_CHECKING:  # requests, filelock and tqdm are imported where a download really happens
    import requests

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""
READ_TIMEOUT = 30.0
"""Seconds without a byte before the connection counts as broken."""
SLOWEST = 1024
"""Bytes a second, over as long: what comes more slowly is a trickle, and counts as broken too."""
BACKOFF, MAX_BACKOFF = 1.0, 30.0
"""Seconds before the second attempt, doubled with each one that brought nothing, and the most."""
MAX_RETRY_AFTER = 120.0
"""Seconds: the longest wait that a server can ask for."""
PATIENCE, PROGRESS_COST = 4.0, 1 / 16
"""An attempt at a source costs 1, or `PROGRESS_COST` when it brought bytes; at 0 the source is given up."""
SILENCE = 600.0
"""Seconds for which a host that gave no answer is asked after all others, and once only."""
MAX_REDIRECTS = 10
CHUNK = 1 << 16
"""Bytes read at once, at most."""

_log = getLogger("zoo_seg")


@dataclass(frozen=True)
class Source:
    """A link to the file; plain http is used only where `allow_http` says so."""

    url: str
    allow_http: bool = False


@dataclass(frozen=True)
class Downloaded:
    """Where the file now lies and what it is; `size` in bytes, `url` without credentials."""

    path: Path
    url: str
    size: int
    sha256: str
    etag: str | None


@dataclass(frozen=True)
class _Wanted:
    """What is known of the file beforehand; see `download`."""

    size: int | None
    sha256: str | None
    claimed: str | None
    kind: Callable[[Path], None]

    def check(self, partial: Partial) -> None:
        try:
            self.kind(partial.path)
        except ValueError as error:
            raise Unfit(str(error)) from None
        if self.size not in (None, partial.size):
            raise Unfit(f"found {partial.size} bytes, expected {self.size}")
        if self.sha256 not in (None, partial.sha256):
            raise _WrongHash(f"expected sha256 {self.sha256}, got {partial.sha256} ({partial.size} bytes)")

    def seems_to_be(self, partial: Partial) -> bool:
        """For a file put together of several answers, where doubt only costs a download."""
        try:
            self.check(partial)
        except Unfit:
            return False
        return bool(self.sha256) or partial.sha256.startswith(self.claimed or "")


class _Refused(Exception):
    """This source will not give the file; what was kept of it may still be good for a later run."""


class _WrongHash(Unfit):
    pass


class _Broken(Exception):
    """The attempt failed, the next may not; `wait` is in seconds, None where the server asked for no pause."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


# --- the way of a file --------------------------------------------------------------------------


def download(
    sources: Sequence[Source],
    destination: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    claimed: str | None = None,
    check: Callable[[Path], None] = check_weight_file,
    resume: bool = False,
    progress: bool = True,
) -> Downloaded:
    """Write the file to `destination` from the first source that has it whole and right.

    Args:
        sources: links in order of preference.
        destination: the final path; its folder must exist. Nothing lies there until the file is complete.
        size: bytes, enforced where given.
        sha256: 64 hex digits, enforced where given.
        claimed: what the sha256 begins with, if the publisher is right; never enforced.
        check: raises ValueError for a file that is not of the expected kind.
        resume: go on from what an interrupted process left, and leave the same to the next one. Only for a caller
            that holds an `exclusive` lock for this destination.
        progress: show a bar when stderr is a terminal.

    Raises:
        HashMismatchError: a source gave a file of another sha256, and no other source the right one.
        DownloadError: no source gave the file, or it cannot be written.
    """
    from tqdm import tqdm

    wanted = _Wanted(size, sha256, claimed, check)
    silent = not (progress and sys.stderr and sys.stderr.isatty())
    failures: list[tuple[Source, Exception]] = []
    with tqdm(desc=destination.name, unit="B", unit_scale=True, disable=silent) as bar:
        for source in sorted(sources, key=lambda source: _is_silent(source.url)):
            partial = Partial(destination, size, resume, bar)
            try:
                with partial:
                    _fill(source, partial, wanted)
                    partial.publish()
            except (_Refused, Unfit) as refusal:
                failures.append((source, refusal))
                _log.info("%s: %s", shown(source.url), plain(refusal))
            except OSError as error:  # of this disk: a source's errors have all become refusals
                raise _cannot_write(error, partial) from error
            else:
                etag = partial.version.etag if partial.version else None
                return Downloaded(destination, shown(source.url), partial.size, partial.sha256, etag)
    told = (f"\n  {shown(source.url)}: {plain(reason)}" for source, reason in failures)
    reasons = "".join(told) or " there is no source"
    wrong = any(isinstance(reason, _WrongHash) for _, reason in failures)
    raise (HashMismatchError if wrong else DownloadError)(
        f"cannot download {destination.name}:{reasons}\n"
        "Try again later, set ZOO_SEG_MIRROR to a folder or server that has the file, "
        "or download it by other means and pass its path in place of the name."
    )


def _fill(source: Source, partial: Partial, wanted: _Wanted) -> None:
    """Fetch the whole file: from where an earlier process stopped, but from the beginning if that does not fit."""
    transport = _TRANSPORTS.get(source.url.partition(":")[0], _from_web)
    partial.adopt(shown(source.url))
    transport(source, partial)
    if partial.joined and not wanted.seems_to_be(partial):
        _log.info("%s: what came in several answers is not one file; once more from the beginning", shown(source.url))
        partial.restart()
        transport(source, partial)
    wanted.check(partial)


def _cannot_write(error: OSError, partial: Partial) -> DownloadError:
    folder, missing = partial.path.parent, partial.limit - partial.size
    if error.errno in _DISK_FULL:
        need = f"{missing} more bytes" if partial.limit < MAX_UNPUBLISHED else "more space"
        return DownloadError(
            f"the disk is full: {partial.destination.name} needs {need} in {folder}; "
            "free some, or set ZOO_SEG_HOME to a folder on another disk"
        )
    return DownloadError(f"cannot write in {folder} ({error}); set ZOO_SEG_HOME to a folder you can write to")


_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def shown(url: str) -> str:
    """The link without what may be secret: credentials, query and fragment. What is no link stays as it is."""
    if "://" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a link that cannot be parsed"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


# --- transports ---------------------------------------------------------------------------------


def _from_file(source: Source, partial: Partial) -> None:
    try:
        file = file_path(source.url).open("rb")
    except OSError as error:
        raise _Refused(f"cannot be read ({error.strerror})") from None
    with file:
        partial.restart(Version(shown(source.url), total=os.fstat(file.fileno()).st_size))
        while chunk := file.read(1 << 20):
            partial.append(chunk)


def _from_hub(source: Source, partial: Partial) -> None:
    from huggingface_hub import hf_hub_download

    no_telemetry()
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", source.url)
    if not match:
        raise _Refused("expected hf://organisation/repository[@revision]/path")
    repository, revision, name = match.groups()
    with tempfile.TemporaryDirectory(dir=partial.path.parent, prefix=".hub-") as folder:
        try:
            revision = unquote(revision) if revision else None
            path = hf_hub_download(repository, unquote(name), revision=revision, local_dir=folder)
        except Exception as error:  # of many kinds, differing by version
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise
            raise _Refused(explain(error, repository, revision) or symptom(error)) from None
        partial.take(Path(path))


def _from_web(source: Source, partial: Partial) -> None:
    """Fill `partial` over http(s): broken connections are taken up where they broke."""
    import requests
    import urllib3

    patience, delay, attempts = 1.0 if _is_silent(source.url) else PATIENCE, BACKOFF, 0
    while not partial.version or partial.size != partial.version.total:
        before, attempts = partial.size, attempts + 1
        try:
            _receive(source, partial)
            return
        except _Broken as error:
            reason, wait = str(error), error.wait
        except (
            requests.Timeout,
            requests.ConnectionError,
            requests.exceptions.ChunkedEncodingError,
            urllib3.exceptions.HTTPError,
        ) as error:
            reason, wait = _explain(error, partial), None
        except (requests.RequestException, ValueError) as error:  # no valid link
            quotes = isinstance(error, requests.RequestException) or "@" in str(error)  # the link, perhaps a secret
            raise _Refused(f"it cannot be asked ({type(error).__name__ if quotes else error})") from None
        progressed = partial.size > before
        patience -= PROGRESS_COST if progressed else 1
        if patience <= 0:
            raise _Refused(f"{reason}; gave up after {attempts} attempt{'s' if attempts > 1 else ''}")
        time.sleep(random.uniform(0.5, 1) * delay if wait is None else wait)
        delay = BACKOFF if progressed else min(2 * delay, MAX_BACKOFF)


def _receive(source: Source, partial: Partial) -> None:
    """One request, for the bytes that are still missing."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "zoo_seg"}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
        if partial.version and partial.version.validator:
            headers["If-Range"] = partial.version.validator
    with _open(source, headers) as response:
        start, total = _check_answer(response, partial)
        version = Version.of(shown(source.url), response.headers, total)
        if start is None:
            partial.restart(version)
        elif start != partial.size or (partial.version and not version.may_continue(partial.version)):
            partial.restart()
            raise _Broken("the server went on with another part of the file, or with another file", wait=0)
        else:
            partial.joined = True
        if partial.announced and total not in (None, partial.announced):
            found = describe(next(response.iter_content(256), b""))
            raise Unfit(f"the server announces {total} bytes, expected {partial.announced}; it sends {found}")
        if not partial.announced and (total or 0) > MAX_UNPUBLISHED:
            raise Unfit(f"the server announces {total} bytes; without a published size {MAX_UNPUBLISHED} are the most")
        for chunk in _arriving(response):
            partial.append(chunk)
    whole = partial.announced or (partial.version.total if partial.version else None)
    if whole is not None and partial.size < whole:
        raise _Broken(f"the connection ended after {partial.size} of {whole} bytes")


def _arriving(response: requests.Response) -> Iterator[bytes]:
    """The body in pieces as they come, so that nothing is lost with a connection that breaks."""
    read = getattr(response.raw, "read1", response.raw.read)  # urllib3 has read1 since 2.2
    since, size = time.monotonic(), 0
    while chunk := read(CHUNK, decode_content=False):
        yield chunk
        size, elapsed = size + len(chunk), time.monotonic() - since
        if elapsed > READ_TIMEOUT:
            if size < SLOWEST * elapsed:
                raise _Broken(f"only {size} bytes came in {elapsed:.0f} s")
            since, size = time.monotonic(), 0


def _open(source: Source, headers: dict[str, str]) -> requests.Response:
    """Follow redirects by hand. Each request is a new one: credentials meant for one host never reach another."""
    url, allowed = source.url, {"https", "http"} if source.allow_http else {"https"}
    for _ in range(MAX_REDIRECTS + 1):
        scheme = urlsplit(url).scheme
        if scheme not in allowed:
            raise _Refused(f"{'redirected to ' + shown(url) if url != source.url else 'not https'}; only https is used")
        if scheme == "https":  # and from there never back to http
            allowed = {"https"}
        response = _ask(url, headers)
        if not response.is_redirect:
            return response
        response.close()
        url = urljoin(url, response.headers["Location"])
    raise _Refused(f"redirected more than {MAX_REDIRECTS} times, last to {shown(url)}: probably in a circle")


def _ask(url: str, headers: dict[str, str]) -> requests.Response:
    """One answer, as far as its head: a wait with an end, which neither the look-up of a name nor a head has of itself.

    The thread of one that never comes is left behind.
    """
    import requests

    answer: Future[requests.Response] = Future()

    def ask() -> None:
        try:
            timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
            answer.set_result(requests.get(url, headers=headers, stream=True, allow_redirects=False, timeout=timeout))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    host = _host(url)
    _silent[host] = time.monotonic()
    try:
        response = answer.result(CONNECT_TIMEOUT + READ_TIMEOUT)
        _silent.pop(host, None)
        return response
    except FutureTimeoutError:
        raise _Broken(f"no whole answer within {CONNECT_TIMEOUT + READ_TIMEOUT:g} s") from None


_silent: dict[str, float] = {}
"""When hosts were asked that have not answered since."""


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def _is_silent(url: str) -> bool:
    asked = _silent.get(_host(url))
    return asked is not None and time.monotonic() - asked < SILENCE


def _check_answer(response: requests.Response, partial: Partial) -> tuple[int | None, int | None]:
    """Where the body starts (None: a new file from its beginning) and the bytes of the whole file, if announced."""
    status, headers = response.status_code, response.headers
    if status == 416 and partial.size:
        partial.restart()
        raise _Broken("the server has fewer bytes than were kept", wait=0)
    if status in (408, 429) or status >= 500:
        raise _Broken(f"HTTP {status} {response.reason}", _retry_after(headers.get("Retry-After")))
    if status not in (200, 206):
        raise _Refused(f"HTTP {status} {response.reason}")
    if headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise _Refused(f"found {describe(next(response.iter_content(256), b''))} (text/html), expected a weight file")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _Refused(f"sent with Content-Encoding {headers['Content-Encoding']}, expected the plain file")
    if status == 200:
        length = headers.get("Content-Length", "")
        return None, int(length) if length.isdecimal() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if not partial.size:
        raise _Refused("HTTP 206 (a part of the file) though all of it was asked for")
    return (int(match[1]), None if match[2] == "*" else int(match[2])) if match else (-1, None)


def _explain(error: Exception, partial: Partial) -> str:
    import requests

    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT:g} s"
    if "timed out" in str(error):
        return f"no data for {READ_TIMEOUT:g} s, after {partial.size} bytes"
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return str(cause).split(": ", 1)[-1] if cause else f"the connection broke off after {partial.size} bytes"


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number or an HTTP date."""
    date = http_date(value)
    if value and value.strip().isdecimal():
        seconds = float(value)
    elif date:
        seconds = (date - datetime.now(timezone.utc)).total_seconds()
    else:
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


_TRANSPORTS: dict[str, Callable[[Source, Partial], None]] = {"file": _from_file, "hf": _from_hub}
