"""What a download has fetched so far, kept so that the next attempt, or the next process, can go on from there."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from zoo_seg.hub.files import replace_durably

if TYPE_CHECKING:
    from tqdm import tqdm

MAX_UNPUBLISHED = 4 << 30
"""Bytes taken of a file whose size nobody has published, whatever the server says of it."""


class Unfit(Exception):
    """The bytes are not the file: they must not be kept."""


@dataclass(frozen=True)
class Version:
    """What a server says about the bytes it sends, to know them again."""

    url: str
    etag: str | None = None
    modified: str | None = None
    total: int | None = None
    """Bytes of the whole file."""
    validator: str | None = None
    """For `If-Range`; None where nothing proves that two answers are the same bytes."""

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str], total: int | None) -> Version:
        etag, modified = headers.get("ETag"), headers.get("Last-Modified")
        validator = etag if etag and not etag.startswith("W/") else None
        sent, changed = http_date(headers.get("Date")), http_date(modified)
        if not etag and sent and changed and (sent - changed).total_seconds() >= 60:  # RFC 9110, 8.8.2.2
            validator = modified
        return cls(url, etag, modified, total, validator)

    def may_continue(self, kept: Version) -> bool:
        pairs = ((self.etag, kept.etag), (self.modified, kept.modified), (self.total, kept.total))
        return all(new is None or old is None or new == old for new, old in pairs)


class Partial:
    """The bytes so far, in a file of this process alone beside the destination, with their running hash.

    A note beside it (`.part.json`) invites a later process to go on. It exists only while this one holds the lock and
    the server gave a strong validator: even where a lock does not reach another machine, both then write the same
    bytes at the same places.
    """

    def __init__(self, destination: Path, announced: int | None, resume: bool, bar: tqdm[NoReturn]) -> None:
        self.destination, self.announced, self._resume, self._bar = destination, announced, resume, bar
        self.path = destination.with_name(f"{destination.name}.{uuid.uuid4().hex[:12]}.part")
        self.limit, self.size = announced or MAX_UNPUBLISHED, 0

    def __enter__(self) -> Partial:
        self._create()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._file.close()
        useless = isinstance(error, (Unfit, OSError)) or not self.size  # a full disk gets its space back
        if useless or not _note_of(self.path).exists():
            self.path.unlink(missing_ok=True)
            _note_of(self.path).unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _create(self, version: Version | None = None) -> None:
        self._file = self.path.open("xb", buffering=0)  # unbuffered: a killed process leaves what it received
        self._digest, self.size = hashlib.sha256(), 0
        self.joined = False
        """Whether the bytes come from more than one answer."""
        self._expect(version)

    def _expect(self, version: Version | None) -> None:
        self.version = version
        self.limit = self.announced or (version.total if version and version.total is not None else MAX_UNPUBLISHED)
        self._bar.reset(self.limit if self.limit != MAX_UNPUBLISHED else None)
        self._bar.update(self.size)
        if version and version.validator and self._resume:
            _note_of(self.path).write_text(json.dumps(asdict(version)), encoding="utf-8")
        else:
            _note_of(self.path).unlink(missing_ok=True)

    def restart(self, version: Version | None = None) -> None:
        """Begin a new, empty file for the bytes of `version`."""
        self._file.close()
        self.path.unlink()
        self._create(version)

    def append(self, chunk: bytes) -> None:
        if self.size + len(chunk) > self.limit:
            unsaid = ", the most that is taken when nobody says how many" if self.limit == MAX_UNPUBLISHED else ""
            raise Unfit(f"the file goes on beyond {self.limit} bytes{unsaid}")
        view = memoryview(chunk)
        while view:
            view = view[self._file.write(view) :]
        self._digest.update(chunk)
        self.size += len(chunk)
        self._bar.update(len(chunk))

    def take(self, path: Path) -> None:
        """Make an existing file this one, hashing what it holds."""
        self._file.close()
        try:
            path.replace(self.path)
        finally:
            self._file = self.path.open("rb+", buffering=0)
        while chunk := self._file.read(1 << 20):
            self._digest.update(chunk)
            self.size += len(chunk)

    def adopt(self, url: str) -> None:
        """Go on with what an interrupted process has fetched from `url`, if it left something."""
        for leftover in _leftovers(self.destination) if self._resume else ():
            try:
                version = Version(**json.loads(_note_of(leftover).read_text(encoding="utf-8")))
                if version.url == url and version.validator:
                    self.take(leftover)
                    self._expect(version)
                    self.joined = True
                    _note_of(leftover).unlink(missing_ok=True)
                    return
            except (OSError, ValueError, TypeError):
                self.restart()

    def publish(self) -> None:
        self._file.close()
        replace_durably(self.path, self.destination)
        _note_of(self.path).unlink(missing_ok=True)
        for leftover in _leftovers(self.destination) if self._resume else ():
            if _note_of(leftover).exists():
                leftover.unlink(missing_ok=True)
                _note_of(leftover).unlink(missing_ok=True)


def _note_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _leftovers(destination: Path) -> list[Path]:
    pattern = re.compile(re.escape(destination.name) + r"\.[0-9a-f]{12}\.part")
    return [path for path in destination.parent.iterdir() if pattern.fullmatch(path.name)]


def http_date(value: str | None) -> datetime | None:
    """The date in a header, None where there is none."""
    try:
        date = parsedate_to_datetime(value or "")
    except (TypeError, ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)
