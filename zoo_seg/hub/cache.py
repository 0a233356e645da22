"""Where the files of the records live on this machine, and whether they can be trusted.

    <ZOO_SEG_HOME>/weights/<weights id>/<file name>      beside each file its record, <file name>.json
    <ZOO_SEG_HOME>/links/<hash of the link>/<file name>

A file whose size and time of change are those of its record is trusted at the cost of a stat; any other is hashed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from logging import getLogger
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from zoo_seg import settings
from zoo_seg.errors import DownloadError, HashMismatchError, OfflineError, OptionError
from zoo_seg.hub.download import Downloaded, Source, download, shown
from zoo_seg.hub.files import check_weight_file, exclusive, file_path, hash_file, replacing, sweep
from zoo_seg.manifest import File, Weights

_log = getLogger("zoo_seg")


@dataclass(frozen=True)
class CachedFile:
    """A file that may be opened: its bytes are those that were published, or seen at the first download."""

    path: Path
    sha256: str
    prefix_claim_holds: bool | None = None
    """Whether the hash begins with the digits in the publisher's file name; None where there are none."""


@dataclass(frozen=True)
class Record:
    """What is known of a file in the cache, kept as JSON beside it."""

    url: str | None
    etag: str | None
    size: int
    """Bytes."""
    mtime_ns: int
    sha256: str
    time: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class Verified:
    """What `verify` found of one file; `got` is None where the file cannot be read."""

    id: str
    """The weights' id, or for a link the name of its folder."""
    path: Path
    expected: str | None
    got: str | None
    status: Literal["ok", "damaged", "unrecorded", "unreadable"]


# --- records ------------------------------------------------------------------------------------


def read_record(path: Path) -> Record | None:
    """The record of the file at `path`, None where there is none that can be read.

    Another version of this library may have written it, with keys that this one does not know.
    """
    try:
        values = json.loads(_record_path(path).read_text(encoding="utf-8"))
        record = Record(*(values.get(field.name) for field in fields(Record)))
        return record if isinstance(record.size, int) and re.fullmatch("[0-9a-f]{64}", record.sha256) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_record(path: Path, *, sha256: str | None = None, url: str | None = None, etag: str | None = None) -> str:
    """Record the file at `path` as it is now, and return its sha256 (computed where not given)."""
    status = path.stat()
    sha256 = sha256 or hash_file(path)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _write_json(path, Record(url, etag, status.st_size, status.st_mtime_ns, sha256, now))
    return sha256


def check(path: Path) -> str | None:
    """The sha256 of the file at `path` if it is what its record says; None if it is missing, changed or unrecorded."""
    record = read_record(path)
    try:
        status = path.stat()
        if record is None:
            return None
        if (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns):
            return record.sha256
        if status.st_size != record.size or hash_file(path) != record.sha256:
            return None
    except OSError:
        return None
    with suppress(OSError):  # a read-only cache is hashed each time
        _write_json(path, replace(record, mtime_ns=status.st_mtime_ns))
    return record.sha256


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_json(path: Path, record: Record) -> None:
    with replacing(_record_path(path)) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


# --- published weights --------------------------------------------------------------------------


def fetch(weights: Weights, *, progress: bool = True) -> CachedFile:
    """The file of a record: from this package or the cache, or downloaded into it.

    The sources are `ZOO_SEG_MIRROR`, the published link, its mirrors, and then the same for the record's next file.

    Raises:
        HashMismatchError: the bytes are not those published, or not those of the first download.
        OfflineError: the file is not here and the network is switched off.
        DownloadError: no source gave the file, or the cache cannot be written.
    """

    def fetched() -> CachedFile:
        with _writing(_folder(weights)) as alone:
            if found := _cached(weights):  # another process was faster
                return found
            file, got = _obtain(weights, _folder(weights), resume=alone, progress=progress)
            return CachedFile(got.path, _remember(got, file.sha256), _claim(file, got.sha256))

    return local(weights) or _fetch_again_if_removed(fetched)


def local(weights: Weights) -> CachedFile | None:
    """The file of a record if it is on this machine, in this package or the cache.

    Raises:
        HashMismatchError: the file in the package is damaged.
    """
    return _packaged(weights) or _cached(weights)


def export(weights: Weights, folder: Path, *, progress: bool = True) -> Path:
    """Put the file of a record, under its published name, into a folder that can serve as `ZOO_SEG_MIRROR`.

    Its sha256 goes into the folder's `SHA256SUMS`, as `sha256sum -c` reads it. Raises as `fetch` does.
    """
    with _writing(folder) as alone:
        sums = _read_sums(folder)
        cached = _packaged(weights) or _cached(weights)
        for file in weights.files:
            known = file.sha256 or (cached and cached.sha256) or sums.get(file.name)
            path = folder / file.name
            if known and path.is_file() and hash_file(path) == known:
                sha256 = known
                break
        else:
            if cached:
                source, path, sha256 = Source(cached.path.absolute().as_uri()), folder / cached.path.name, cached.sha256
                download([source], path, sha256=sha256, resume=alone, progress=progress)
            else:
                _, got = _obtain(weights, folder, resume=alone, progress=progress)
                path, sha256 = got.path, got.sha256
        _write_sums(folder, {**sums, path.name: sha256})
        return path


def _packaged(weights: Weights) -> CachedFile | None:
    """The file that came with the package, hashed each time: it is small, and no record can stand beside it."""
    for file in weights.files:
        if file.packaged is None:
            continue
        sha256 = hash_file(file.packaged) if file.packaged.is_file() else "no file"
        if file.sha256 not in (None, sha256):
            raise HashMismatchError(
                f"{file.packaged} came with the package and should have the sha256 {file.sha256}, but has {sha256}; "
                "install zoo_seg again: pip install --force-reinstall --no-deps zoo_seg"
            )
        return CachedFile(file.packaged, sha256)
    return None


def _cached(weights: Weights) -> CachedFile | None:
    for file in weights.files:
        path = _folder(weights) / file.name
        if sha256 := _trusted(path, file.sha256):
            return CachedFile(path, sha256, _claim(file, sha256))
    return None


def _trusted(path: Path, published: str | None) -> str | None:
    """The sha256 of a file in the cache, None where it is missing or damaged."""
    if read_record(path):
        sha256 = check(path)
        return sha256 if published in (None, sha256) else None
    try:  # someone has put it there
        check_weight_file(path)
        sha256 = hash_file(path)
    except (OSError, ValueError):
        return None
    if published not in (None, sha256):
        return None
    with suppress(OSError):
        write_record(path, sha256=sha256)
    return sha256


def _claim(file: File, sha256: str) -> bool | None:
    return sha256.startswith(file.sha256_prefix_claimed.lower()) if file.sha256_prefix_claimed else None


def _obtain(weights: Weights, folder: Path, *, resume: bool, progress: bool) -> tuple[File, Downloaded]:
    """Download the first file of the record that some source gives."""
    failures: list[DownloadError] = []
    for file in weights.files:
        cached = _folder(weights) / file.name
        if cached.exists():
            _log.warning("%s is damaged; it is fetched again", cached)
        try:
            return file, _get(_sources(file), folder / file.name, cached, file, resume=resume, progress=progress)
        except DownloadError as error:
            if isinstance(error.__cause__, OSError):  # of this disk: another file fares no better
                raise
            failures.append(error)
    reasons = "\n".join(str(error) for error in failures)
    if any(isinstance(error, HashMismatchError) for error in failures):
        raise HashMismatchError(reasons)
    if settings.offline():
        mirror = settings.mirror()
        raise OfflineError(
            f"{weights.id} is neither in the cache ({_folder(weights)}) nor, whole, in ZOO_SEG_MIRROR "
            f"({mirror or 'not set'}), and ZOO_SEG_OFFLINE or HF_HUB_OFFLINE switches the network off.\n"
            + (f"{reasons}\n" if mirror else "")
            + f"On a machine with network type: zoo-seg download {weights.id} --to DIR\n"
            "then bring DIR here and set ZOO_SEG_MIRROR to it."
        )
    raise DownloadError(reasons)


def _sources(file: File) -> list[Source]:
    """The places to ask for a file, in order; without network only those on this machine."""
    mirror, sources = settings.mirror(), []
    for name in file.names if mirror else ():
        if mirror and name == _safe_name(name):
            remote = re.match("[a-z]+://", mirror)
            base = mirror.rstrip("/") if remote else Path(mirror).expanduser().absolute().as_uri()
            sources.append(Source(f"{base}/{quote(name)}", allow_http=mirror.startswith("http://")))
    sources += [Source(url) for url in (file.url, *file.mirrors)]
    return [source for source in sources if source.url.startswith("file://") or not settings.offline()]


def _folder(weights: Weights) -> Path:
    return settings.home() / "weights" / weights.id


# --- links --------------------------------------------------------------------------------------


def fetch_link(url: str, *, progress: bool = True) -> CachedFile:
    """The file behind a link of the user's: `https://`, `hf://organisation/repository[@revision][/path]` or `file://`.

    A `file://` link is used where it is; the others are kept in the cache, held to the hash of the first
    download. A repository without a path stands for its `model.safetensors`.

    Raises:
        OptionError: the link is of another kind, `http://` among them.
        DownloadError: as for `fetch`.
    """
    if url.startswith("file://"):
        try:
            path = file_path(url)
            check_weight_file(path)
            return CachedFile(path, hash_file(path))
        except (OSError, ValueError) as error:
            raise DownloadError(f"{url} cannot be used: {error}") from None
    if not url.startswith(("https://", "hf://")):
        raise OptionError(
            f"the link {shown(url)} is refused: expected https://, hf:// or file://. What comes over plain http can be "
            "changed on its way; download it by other means and pass its path"
        )
    if re.fullmatch("hf://[^/]+/[^/]+", url):
        url += "/model.safetensors"
    folder = settings.home() / "links" / hashlib.sha256(url.encode()).hexdigest()[:16]
    return fetch_file(url, folder / _safe_name(unquote(re.split("[?#]", url)[0].rpartition("/")[2])), progress=progress)


def fetch_file(
    url: str,
    path: Path,
    published: File | None = None,
    *,
    check: Callable[[Path], None] = check_weight_file,
    progress: bool = True,
) -> CachedFile:
    """The file behind one link, kept at `path` in the cache and held to what is published of it.

    Raises as `fetch` does; `check` is that of `download`.
    """
    sha256 = published.sha256 if published else None

    def fetched() -> CachedFile:
        with _writing(path.parent) as alone:
            if known := _trusted(path, sha256):
                return CachedFile(path, known)
            got = _get([Source(url)], path, path, published, check=check, resume=alone, progress=progress)
            return CachedFile(path, _remember(got, sha256))

    if known := _trusted(path, sha256):
        return CachedFile(path, known)
    if settings.offline():
        raise OfflineError(
            f"{shown(url)} is not in the cache ({path}), and ZOO_SEG_OFFLINE or HF_HUB_OFFLINE switches the network "
            "off; copy the file to this machine and pass its path"
        )
    return _fetch_again_if_removed(fetched)


def _safe_name(name: str) -> str:
    """The name as every file system takes it: never empty, hidden or a way to another folder."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).strip(".")[-200:] or "weights"


# --- shared by both -----------------------------------------------------------------------------


def _fetch_again_if_removed(fetched: Callable[[], CachedFile]) -> CachedFile:
    """Fetch, and once more should someone remove the cache, or an unfinished file in it, in the meantime."""
    try:
        return fetched()
    except DownloadError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    _log.warning("a file in the cache was removed while it was written; it is fetched again")
    return fetched()


def _get(
    sources: Sequence[Source],
    destination: Path,
    cached: Path,
    file: File | None,
    *,
    check: Callable[[Path], None] = check_weight_file,
    resume: bool,
    progress: bool,
) -> Downloaded:
    """Download, held to the published sha256, else to the one recorded when the file `cached` first came."""
    size, published = (file.size, file.sha256) if file else (None, None)
    claimed = file.sha256_prefix_claimed.lower() if file and file.sha256_prefix_claimed else None
    record = read_record(cached)
    expected = published or (record.sha256 if record else None)
    try:
        return download(
            sources,
            destination,
            size=size,
            sha256=expected,
            claimed=claimed,
            check=check,
            resume=resume,
            progress=progress,
        )
    except HashMismatchError as error:
        if published:
            raise
        raise HashMismatchError(
            f"{error}\nThe expected sha256 is that of the first download. If the publisher has replaced the file, "
            f"delete {_record_path(cached)} to accept the new one."
        ) from None


def _remember(got: Downloaded, published: str | None) -> str:
    if not published:
        _log.info("no sha256 is published for %s; later downloads must have this one: %s", got.path.name, got.sha256)
    try:
        return write_record(got.path, sha256=got.sha256, url=got.url, etag=got.etag)
    except FileNotFoundError:  # the whole folder is gone
        raise
    except OSError as error:
        _log.warning("%s is good, but no record of it could be written (%s)", got.path, error)
        return got.sha256


@contextmanager
def _writing(folder: Path) -> Iterator[bool]:
    """Make a folder and hold its lock; yields whether there are locks. Whatever the disk refuses is told in words."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if settings.home() in folder.parents:
            _tag(settings.home() / "CACHEDIR.TAG")
        with exclusive(folder / ".lock") as alone:
            yield alone
            if alone:
                sweep(folder)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"cannot write in {folder} ({error.strerror or error}); choose a folder you can write to, "
            "for the cache by setting ZOO_SEG_HOME"
        ) from error


def _tag(path: Path) -> None:
    """Tell backup programs that this folder can be fetched again (https://bford.info/cachedir)."""
    if not path.exists():
        path.write_text(
            "Signature: 8a477f597d28d172789f06886806bc55\n# Weights fetched by zoo_seg.\n", encoding="ascii"
        )


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / "SHA256SUMS"
    lines = re.findall(r"^([0-9a-f]{64}) [ *](.+)$", path.read_text(encoding="utf-8"), re.M) if path.exists() else []
    return {name: sha256 for sha256, name in lines}


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    with replacing(folder / "SHA256SUMS") as temporary:
        lines = (f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items()))
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")


# --- verifying ----------------------------------------------------------------------------------


def verify(*, progress: bool = False) -> Iterator[Verified]:
    """Hash every file in the cache anew, one result each; a damaged one is renamed to `<name>.damaged`.

    The next use fetches it again, held to the same hash.
    """
    from tqdm import tqdm

    paths = [path for kind in ("weights", "links") for path in sorted((settings.home() / kind).glob("*/*"))]
    paths = [path for path in paths if path.is_file() and not re.search(r"^\.|\.(json|part|lock|damaged)$", path.name)]
    for path in tqdm(paths, unit="file", disable=not (progress and sys.stderr and sys.stderr.isatty())):
        yield _verify(path)


def _verify(path: Path) -> Verified:
    record = read_record(path)
    expected = record.sha256 if record else None
    try:
        got = hash_file(path)
    except OSError:
        return Verified(path.parent.name, path, expected, None, "unreadable")
    if expected in (None, got):
        return Verified(path.parent.name, path, expected, got, "ok" if expected else "unrecorded")
    with suppress(OSError):  # in a read-only cache it stays, and is refused all the same
        path.replace(path.with_name(f"{path.name}.damaged"))
    return Verified(path.parent.name, path, expected, got, "damaged")
