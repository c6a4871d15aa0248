"""A hub on loopback: as much of the Hugging Face hub's HTTP interface as its libraries ask for, with faults.

Two servers run: the hub itself, and the storage to which it redirects for data files, as the real one does. What was asked
is in `requests`. A `Fault` is served in place of the true answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.data.hub_repository import Repository, entry, tree

DATA_ENDINGS = (".parquet", ".jsonl", ".gz", ".json", ".txt", ".zst")


@dataclass
class Request:
    """One request as it was answered."""

    method: str
    path: str
    range: str | None
    token: str | None
    on_storage: bool
    status: int = 0
    sent_bytes: int = 0
    fault: str = ""


@dataclass
class Fault:
    """What is served in place of the answers to `times` requests whose path has `where` in it, after `skip` good ones.

    Kinds: `status` (an error `status` with `headers`), `stall` (half of the body, then nothing), `silent` (nothing at all),
    `reset` and `truncate` (half of the body, then the connection is reset or closed), `short` (half of the body, and a
    length that says so), `shifted` (another range than was asked for), `whole` (ranges are ignored), `loop` (a redirect
    to itself), `nowhere` (a redirect to a name that does not exist), `html` (an error page with status 200), `garbage`
    (as many other bytes), `die` (both servers stop, for good).
    """

    kind: str
    where: str = "/"
    times: int = 10**9
    skip: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    on_storage: bool | None = None
    served: int = 0


class HubServer:
    """Context manager. `url` is what HF_ENDPOINT should be; it stays the same over `stop` and `start`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.tokens = {"hf_good": True, "hf_stranger": False}
        """Tokens that are known, and whether their owner may read gated and private sets."""
        self.lock = threading.Lock()
        self._ports = [0, 0]
        self._servers: list[_Server] = []
        self.released = threading.Event()

    def __enter__(self) -> HubServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def storage_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[1]}"

    def start(self) -> None:
        assert not self._servers
        self.released.clear()
        for k in range(2):
            server = _Server(("127.0.0.1", self._ports[k]), self, on_storage=k == 1)
            self._ports[k] = server.server_address[1]
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def repair(self) -> None:
        """Be up."""
        if not self._servers:
            self.start()

    def stop(self) -> None:
        """Refuse connections, and cut those that there are."""
        self.released.set()
        servers, self._servers = self._servers, []
        for server in servers:
            server.shutdown()
            server.server_close()
            server.cut()

    def add(self, name: str, files: dict[str, bytes], *, gated: bool = False, private: bool = False) -> Repository:
        self.repositories[name] = repository = Repository(name, files, gated=gated, private=private)
        return repository

    def fail(self, kind: str, where: str = "/", **options: Any) -> Fault:
        """Serve this fault from now on."""
        fault = Fault(kind, where, **options)
        with self.lock:
            self.faults.append(fault)
        return fault

    def mend(self) -> None:
        """Serve no more faults, and let go of those who wait for an answer."""
        with self.lock:
            self.faults.clear()
        self.released.set()
        self.released = threading.Event()

    def sent_bytes(self, where: str = "") -> int:
        """Bytes of bodies sent for paths with `where` in them."""
        return sum(request.sent_bytes for request in self.requests if where in request.path)

    def fault_for(self, request: Request) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                fits = fault.where in request.path and request.method == fault.method
                if not fits or fault.on_storage not in (None, request.on_storage):
                    continue
                fault.served += 1
                if fault.skip < fault.served <= fault.skip + fault.times:
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], hub: HubServer, *, on_storage: bool) -> None:
        self.hub = hub
        self.on_storage = on_storage
        self.sockets: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none."""

    def cut(self) -> None:
        for connection in list(self.sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Refused(Exception):  # noqa: N818
    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `requests` has it."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bearer = self.headers.get("Authorization")
        self.asked = Request(
            self.command,
            unquote(self.path),
            self.headers.get("Range"),
            None if bearer is None else bearer.removeprefix("Bearer "),
            self.server.on_storage,
        )
        self.hub.requests.append(self.asked)
        fault = self.hub.fault_for(self.asked)
        if fault is not None:
            self.asked.fault = fault.kind
            if not self._before(fault):
                return
        try:
            self._true_answer(fault)
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code} if refused.code else {}
            self._send(
                refused.status,
                json.dumps({"error": refused.message}).encode(),
                {"X-Error-Message": refused.message, "Content-Type": "application/json", **headers},
            )

    # ---- the hub ----

    def _true_answer(self, fault: Fault | None) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        words = path.split("/")
        if self.asked.token is not None and self.asked.token not in self.hub.tokens:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        if words[0] == "storage":  # /storage/owner/name/commit/path
            data = self.hub.repositories["/".join(words[1:3])].commits[words[3]]["/".join(words[4:])]
            return self._send_file(data, {}, fault)
        if words[:2] == ["api", "datasets"] and len(words) >= 4:
            return self._api(self._repository("/".join(words[2:4])), words[4:])
        if words[0] == "datasets" and words[3:4] == ["resolve"]:
            return self._file(self._repository("/".join(words[1:3])), words[4], "/".join(words[5:]), fault)
        if path == "":
            return self._send(200, b"hub", {})
        raise _Refused(404, "", "Not found")

    def _repository(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        allowed = self.hub.tokens.get(self.asked.token or "", False)
        if repository is None or (repository.private and not allowed):
            if self.asked.token is None:
                raise _Refused(401, "RepoNotFound", "Invalid username or password.")
            raise _Refused(404, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, repository: Repository, words: list[str]) -> None:
        if not words or words[0] == "revision":
            commit = self._commit(repository, words[1] if words else "main")
            return self._send_json(
                {
                    "_id": "0" * 24,
                    "id": repository.name,
                    "sha": commit,
                    "private": repository.private,
                    "gated": "auto" if repository.gated else False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "lastModified": "2026-01-01T00:00:00.000Z",
                    "createdAt": "2026-01-01T00:00:00.000Z",
                    "siblings": [{"rfilename": path} for path in sorted(repository.commits[commit])],
                }
            )
        commit = self._commit(repository, words[1])
        files = repository.commits[commit]
        if words[0] == "tree":
            folder = "/".join(words[2:])
            entries = tree(files, folder, recursive="recursive=true" in self.path.lower())
            if entries is None:
                raise _Refused(404, "EntryNotFound", f"{folder} does not exist on {words[1]}")
            return self._send_json(entries)
        if words[0] == "paths-info":
            asked = json.loads(self.body)["paths"]
            return self._send_json([entry(path, files[path]) for path in asked if path in files])
        raise _Refused(404, "", "Not found")

    def _file(self, repository: Repository, revision: str, path: str, fault: Fault | None) -> None:
        commit = self._commit(repository, revision)
        if repository.gated and not self.hub.tokens.get(self.asked.token or "", False):
            said = f"Access to dataset {repository.name} is restricted"
            if self.asked.token is None:
                raise _Refused(401, "GatedRepo", f"{said}. You must have access to it and be authenticated to access it.")
            raise _Refused(403, "GatedRepo", f"{said} and you are not in the authorized list.")
        files = repository.commits[commit]
        if path not in files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha1(files[path]).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if not path.endswith(DATA_ENDINGS):
            return self._send_file(files[path], headers, fault)
        return self._send(
            302,
            b"",
            {
                **headers,
                "X-Linked-Size": str(len(files[path])),
                "X-Linked-ETag": f'"{etag}"',
                "Location": f"{self.hub.storage_url}/storage/{repository.name}/{commit}/{path}",
            },
        )

    # ---- answers ----

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def _send_file(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        asked = self.headers.get("Range")
        status, headers = 200, {"Content-Type": "binary/octet-stream", **headers}
        part, first = data, 0
        if asked and not (fault and fault.kind == "whole"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, beyond = int(start), min(int(end) + 1 if end else len(data), len(data))
            if first >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            if fault and fault.kind == "shifted":
                first, beyond = first + 1, min(beyond + 1, len(data))
            part = data[first:beyond]
            status = 206
            headers["Content-Range"] = f"bytes {first}-{beyond - 1}/{len(data)}"
        if fault and fault.kind == "garbage":
            part = hashlib.shake_128(part).digest(len(part))
        if fault and fault.kind == "short":
            return self._send(status, part[: len(part) // 2], headers)
        if fault and fault.kind in ("stall", "reset", "truncate"):
            return self._break_off(fault, status, part, headers)
        return self._send(status, part, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.asked.sent_bytes += len(body)
            self.wfile.write(body)
        self.wfile.flush()

    # ---- faults ----

    def _before(self, fault: Fault) -> bool:
        """Serve a fault that needs no true answer. False: it was served."""
        if fault.kind == "status":
            self._send(fault.status, b"busy", {"Content-Type": "text/plain", **fault.headers})
        elif fault.kind == "html":
            page = b"<!doctype html><title>Just a moment</title><p>We are under maintenance.</p>"
            self._send(200, page, {"Content-Type": "text/html; charset=utf-8"})
        elif fault.kind == "loop":
            self._send(302, b"", {"Location": self.path})
        elif fault.kind == "nowhere":
            self._send(302, b"", {"Location": "http://storage.invalid/file"})
        elif fault.kind == "silent":
            self.hub.released.wait(60)
            self.close_connection = True
        elif fault.kind == "die":
            self.close_connection = True
            threading.Thread(target=self.hub.stop, daemon=True).start()
        else:
            return True
        return False

    def _break_off(self, fault: Fault, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        half = body[: len(body) // 2]
        self.asked.sent_bytes += len(half)
        self.wfile.write(half)
        self.wfile.flush()
        self.close_connection = True
        if fault.kind == "stall":
            self.hub.released.wait(60)
        elif fault.kind == "reset":
            time.sleep(0.02)  # what was sent arrives before the reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
