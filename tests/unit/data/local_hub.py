"""A small Hugging Face Hub on this machine: data sets in memory, with the routes that huggingface_hub requests.

Files are served as LFS files: /resolve/ redirects to another address (another port, as a CDN is another host) that
supports Range. Requests are recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "1234567890" * 4


@dataclass
class LocalHub:
    """Data sets, faults and recorded requests."""

    data_sets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    """Data sets whose files are refused without a token."""
    small: set[str] = field(default_factory=set)
    """Paths that are in git itself, not LFS: identified by git's sha1, served without a redirect."""
    damaged: dict[str, bytes] = field(default_factory=dict)
    """Path to the bytes that are sent instead of the content."""
    cut: dict[str, int] = field(default_factory=dict)
    """Path to the byte at which every connection ends."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Old to new name of data sets; the Hub redirects requests for the old one."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """(method, path, headers in lower case), in order."""
    endpoint: str = ""
    cdn: str = ""

    def gets(self, path: str) -> list[dict[str, str]]:
        """Headers of the requests for a file's bytes."""
        return [headers for method, route, headers in self.requests if method == "GET" and route == f"/bytes/{path}"]

    def paths_requested(self) -> list[str]:
        return [path for _, path, _ in self.requests]


@contextlib.contextmanager
def serve(hub: LocalHub) -> Iterator[LocalHub]:
    """The hub at `hub.endpoint` until the block ends."""
    servers = [_Server(hub), _Server(hub)]
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: LocalHub):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> LocalHub:
        return self.server.hub

    def log_message(self, *_):
        pass

    def note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        return path

    def was_redirected(self) -> bool:
        for old, new in self.hub.renamed.items():
            if f"/datasets/{old}" in self.path:
                self.answer(307, b"", {"Location": self.path.replace(old, new)})
                return True
        return False

    def do_GET(self):
        path = self.note()
        if self.was_redirected():
            return
        if match := re.fullmatch(r"/bytes/([^/]+/[^/]+)/(.+)", path):
            self.send_bytes(*match.groups())
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            self.resolve(*match.groups())
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/\w+", path):
            self.answer_json([_entry(self.hub, *item) for item in self.hub.data_sets[match[1]].items()])
        elif (match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)", path)) and match[1] in self.hub.data_sets:
            self.answer_json({"id": match[1], "sha": COMMIT})
        else:
            self.refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        path = self.note()
        names = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        if self.was_redirected():
            return
        files = self.hub.data_sets[re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/\w+", path)[1]]
        self.answer_json([_entry(self.hub, name, files[name]) for name in names if name in files])

    def resolve(self, repository, revision, name):
        if repository in self.hub.gated and "Authorization" not in self.headers:
            self.refuse(403, "GatedRepo")
        elif revision != COMMIT or name not in self.hub.data_sets[repository]:
            self.refuse(404, "EntryNotFound")
        elif name in self.hub.small:
            self.send_bytes(repository, name)
        else:
            self.answer(302, b"", self.redirection(repository, name))

    def redirection(self, repository, name):
        data = self.hub.data_sets[repository][name]
        return {
            "Location": f"{self.hub.cdn}/bytes/{quote(f'{repository}/{name}')}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(len(data)),
        }

    def send_bytes(self, repository, name):
        data = self.hub.damaged.get(name, self.hub.data_sets[repository][name])
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        end = self.hub.cut.get(name, len(data))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:end])
        self.close_connection = end < len(data)

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status, code):
        self.answer(status, b"{}", {"X-Error-Code": code})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _entry(hub: LocalHub, name: str, data: bytes) -> dict:
    git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    entry = {"type": "file", "path": name, "size": len(data), "oid": git}
    if name not in hub.small:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
