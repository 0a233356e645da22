"""The Hugging Face Hub in small: repositories of files with branches and commits, who may read and write them.

It speaks what huggingface_hub asks for: resolve (HEAD and GET, large files by a redirect), model info, repositories and
branches made, preupload, Git LFS (batch, upload, verify) and commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = (".safetensors", ".jpg", ".pth", ".bin")
"""Files kept by LFS."""
Files = dict[str, bytes]


@dataclass
class Repo:
    """Its commits by name (40 hex digits), and the commit that each branch stands for."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add files to a branch."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = {**before, **files}
        self.branches[branch] = name
        return name

    def files(self, branch: str = "main") -> Files:
        return self.commits[self.branches[branch]]


class Hub(ThreadingHTTPServer):
    """Tokens may write to the organisations that `writers` gives them, and read everything of these."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.writers: dict[str, set[str]] = {"writer": {"org"}, "reader": set()}
        self.stored: dict[str, bytes] = {}
        self.spoiled: dict[str, bytes] = {}
        """Large files by sha256, and those sent in place of some."""
        self.asked: list[tuple[str, str]] = []
        """(verb, path) of every request."""
        self.broken: int | None = None
        """A status to answer everything with."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *exception: Any) -> None:
        self.shutdown()
        super().__exit__(*exception)

    def take_the_place_of_the_hub(self, monkeypatch: pytest.MonkeyPatch, *, no_token: Path) -> None:
        """The client asks here, logged in as one who may write to `org`; `no_token` is where no file is."""
        modules = ("constants", "file_download", "hf_api", "_commit_api", "lfs")
        for module in (sys.modules.get(f"huggingface_hub.{name}") for name in modules):
            if module is not None:  # it reads HF_ENDPOINT when it is imported, older versions into every module
                monkeypatch.setattr(module, "ENDPOINT", self.url, raising=False)
                template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
                monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(no_token))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setenv("HF_TOKEN", "writer")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self) -> str:
        """Another host: where large files lie."""
        return f"http://localhost:{self.server_port}"


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "refused", **further: str) -> None:
        super().__init__(message)
        self.status, self.code, self.further = status, code, further


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.server.broken:
                raise _Refused(self.server.broken)
            for verb, pattern, method in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in verb:
                    method(self, *match.groups())
                    return
            raise _Refused(404, message=f"no such endpoint: {self.command} {path}")
        except _Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            body = json.dumps({"error": str(refusal), **refusal.further}).encode()
            self.answer(refusal.status, body, {key: value for key, value in headers.items() if value})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for key, value in {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # --- who asks for what ----------------------------------------------------------------------

    def organisations(self) -> set[str] | None:
        """Those that the asker may write to; None for a stranger."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.server.writers:
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return self.server.writers[token] if token else None

    def readable(self, name: str) -> Repo:
        mine = self.organisations()
        repo = self.server.repos.get(name)
        member = mine is not None and name.partition("/")[0] in mine
        if repo is None or (repo.private and not member):
            raise _Refused(401 if mine is None else 404, "RepoNotFound", "Repository not found")
        if repo.gated and not member:
            raise _Refused(401 if mine is None else 403, "GatedRepo", "Access to this model is restricted")
        return repo

    def writable(self, name: str) -> Repo:
        mine = self.organisations()
        if mine is None:
            raise _Refused(401, message="Invalid username or password.")
        repo = self.readable(name)
        if name.partition("/")[0] not in mine:
            raise _Refused(403, message=f"You don't have the rights to write to {name}")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # --- reading --------------------------------------------------------------------------------

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.readable(name)
        commit = self.commit_of(repo, revision)
        body = repo.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if body is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        if path.endswith(LARGE):
            sha256 = hashlib.sha256(body).hexdigest()
            self.server.stored[sha256] = body
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(body)), "ETag": '"elsewhere"'}
            self.answer(302, b"", headers | {"Location": f"{self.server.store}/stored/{sha256}"})
        else:
            blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            self.answer(200, body, headers | {"ETag": f'"{blob}"'})

    def stored(self, sha256: str) -> None:
        body = self.server.spoiled.get(sha256, self.server.stored[sha256])
        begin = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(begin[1]) if begin else 0
        headers = {"ETag": f'"{sha256}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.answer(206 if start else 200, body[start:], headers)

    def info(self, name: str, revision: str | None = None) -> None:
        repo = self.readable(name)
        commit = self.commit_of(repo, revision or "main")
        files = [{"rfilename": path} for path in repo.commits[commit]]
        counts = {"downloads": 0, "likes": 0, "tags": []}
        self.answer_json({"id": name, "sha": commit, "private": repo.private, "siblings": files, **counts})

    # --- writing --------------------------------------------------------------------------------

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        mine = self.organisations()
        if mine is None:
            raise _Refused(401, message="Invalid username or password.")
        if name in self.server.repos:
            raise _Refused(409, message="You already created this model repo", url=f"{self.server.url}/{name}")
        if asked["organization"] not in mine:
            raise _Refused(403, message=f'You don\'t have the rights to create a model under "{asked["organization"]}"')
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repos[name] = Repo(private=private)
        self.server.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer_json({"url": f"{self.server.url}/{name}", "name": name})

    def branch(self, name: str, branch: str) -> None:
        repo = self.writable(name)
        if branch in repo.branches:
            raise _Refused(409, message="Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self.answer_json({})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no YAML header"}]
        self.answer_json({"errors": errors, "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        self.commit_of(self.writable(name), revision)
        files = [each["path"] for each in json.loads(self.body)["files"]]
        modes = [{"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular"} for path in files]
        self.answer_json({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})

    def batch(self, name: str) -> None:
        self.writable(name)
        objects = [self.upload_action(each["oid"], each["size"]) for each in json.loads(self.body)["objects"]]
        self.answer_json({"transfer": "basic", "objects": objects})

    def upload_action(self, oid: str, size: int) -> dict[str, Any]:
        if oid in self.server.stored:
            return {"oid": oid, "size": size}
        upload = {"href": f"{self.server.url}/upload/{oid}", "header": {}}
        verify = {"href": f"{self.server.url}/verify", "header": {}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, message="these are other bytes")
        self.server.stored[oid] = self.body
        self.answer(200)

    def verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.server.stored.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(422, message="nothing of this size was uploaded")
        self.answer_json({})

    def commit(self, name: str, revision: str) -> None:
        repo = self.writable(name)
        files: Files = {}
        for line in self.body.splitlines():
            value = json.loads(line)["value"]
            if "content" in value:
                files[value["path"]] = base64.b64decode(value["content"])
            elif "oid" in value:
                files[value["path"]] = self.server.stored[value["oid"]]
        commit = repo.commit(files, "refs/pr/1" if "create_pr=1" in self.path else revision)
        url = f"{self.server.url}/{name}"
        self.answer_json(
            {"commitUrl": f"{url}/commit/{commit}", "commitOid": commit, "pullRequestUrl": f"{url}/discussions/1"}
        )


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET HEAD", rf"/{_NAME}/resolve/(.+?)/([\w.-]+)", _Handler.resolve),
    ("GET HEAD", r"/stored/(\w+)", _Handler.stored),
    ("GET", rf"/api/models/{_NAME}(?:/revision/(.+))?", _Handler.info),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", rf"/api/models/{_NAME}/branch/(.+)", _Handler.branch),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/upload/(\w+)", _Handler.upload),
    ("POST", r"/verify", _Handler.verify),
    ("POST", rf"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
]
