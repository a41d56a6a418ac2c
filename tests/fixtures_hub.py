"""A hub on this machine: what huggingface_hub asks of one, over folders of a test."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Hub:
    """Models by name, the commits that they have, and what was fetched of them."""

    models: dict[str, Path]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": OLDER})
    gated: bool = False
    cuts: int = 0  # so many answers to come are cut off in their middle
    forbidden: bool = False  # files are refused, without a word why
    fetched: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    asked: int = 0
    url: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, at ``hub.url``."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *words: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked += 1
        path = self.path.partition("?")[0]
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = about or file
        if found is None or found[1] not in self.hub.models:
            self.say(404, error="RepoNotFound")
            return
        revision = (about[3] if about else file[2]) or "main"
        commits = self.hub.revisions
        commit = revision if revision in commits.values() else commits.get(revision)
        if commit is None:
            self.say(404, error="RevisionNotFound")
        elif about:
            self.tell(about[1], about[2], commit)
        elif self.hub.gated:
            self.say(403, error="GatedRepo")
        elif self.hub.forbidden:
            self.say(403)
        else:
            self.hand_out(self.hub.models[file[1]] / file[3], file[3], commit)

    def tell(self, name: str, what: str | None, commit: str) -> None:
        """What a model is, or which files it has."""
        folder = self.hub.models[name]
        if what != "tree":
            self.say(200, json.dumps({"id": name, "sha": commit}).encode())
            return
        files = [
            {
                "type": "file", "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size, "oid": _etag(path),
            }
            for path in sorted(folder.rglob("*")) if path.is_file()
        ]  # fmt: skip
        self.say(200, json.dumps(files).encode())

    def hand_out(self, path: Path, name: str, commit: str) -> None:
        """A file, or the part of it that is asked for; perhaps cut off."""
        whole = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        body = whole[start:]
        more = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": commit}
        if wanted:
            self.hub.ranges.append(name)
            more["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        if self.command == "GET":
            self.hub.fetched.append(name)
        cut = self.command == "GET" and self.hub.cuts > 0 and len(body) > 2_000_000
        self.hub.cuts -= cut
        self.say(206 if wanted else 200, body, half=cut, **more)

    def say(self, status: int, body: bytes = b"", error: str = "", half: bool = False, **more: str):
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = True


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
