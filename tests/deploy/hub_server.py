"""A stand-in of the Hugging Face hub's HTTP API: enough to upload and download; repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


class Hub(ThreadingHTTPServer):
    """`repos`: by (kind, name), the files. `requests`: every method and path that was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.created: list[dict] = []
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None: ...

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and path != "/api/validate-yaml":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            kind, owner = asked.get("type") or "model", asked.get("organization") or "me"
            self.server.repos.setdefault((f"{kind}s", f"{owner}/{asked['name']}"), {})
            return self._json({"url": f"{self.server.url}/{owner}/{asked['name']}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        match = re.fullmatch(r"/api/(models|spaces)/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if match is None:
            return self._json({"error": f"not here: {path}"}, 404)
        if match[3] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._json({"files": modes})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.server.repos[match[1], match[2]][entry["value"]["path"]] = content
        address = f"{self.server.url}/{match[2]}/commit/{'1' * 40}"
        return self._json({"success": True, "commitOid": "1" * 40, "commitUrl": address})

    def do_GET(self) -> None:
        path = self._path()
        match = re.fullmatch(r"/api/(models|spaces)/([^/]+/[^/]+)(/revision/.*|/tree/.*)?", path)
        if match is not None and (match[1], match[2]) in self.server.repos:
            files = self.server.repos[match[1], match[2]]
            if (match[3] or "").startswith("/tree"):
                rows = [
                    {"type": "file", "path": n, "size": len(c), "oid": _etag(c)} for n, c in files.items()
                ]
                return self._json(rows)
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": match[2], "sha": "1" * 40, "siblings": siblings})
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        content = self.server.repos.get(("models", match[1]), {}).get(match[2]) if match else None
        if content is None:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def _path(self) -> str:
        self.server.requests.append(f"{self.command} {self.path}")
        return unquote(urlsplit(self.path).path)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
