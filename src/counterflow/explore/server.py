"""A page for one person on this machine: loopback only, and only for who knows the random word in its address.

There is no script and no socket that stays open: a question is a GET of the form, an answer is a page. What is served forbids the browser
to load anything from elsewhere (Content-Security-Policy), to be shown inside other pages, and to tell other sites where it was.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from counterflow import __version__
from counterflow.errors import ConfigError

LOOPBACK = "127.0.0.1"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MOST_FIELDS = 200
SILENCE = 30.0  # seconds after which a connection that says nothing is closed


@dataclass(frozen=True)
class Response:
    """What a question is answered with."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def download(cls, body: bytes, kind: str, name: str) -> Response:
        """A file to keep; `name` without quotes or control characters."""
        return cls(body, kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


Site = Callable[[str, dict[str, list[str]]], Response | None]
"""(page, fields of the form) -> what is there; None: nothing."""


class Server(ThreadingHTTPServer):
    """Serves a site at ``http://127.0.0.1:PORT/WORD/``.

    Parameters
    ----------
    site
        Answers questions.
    port
        0: any that is free.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, site: Site, port: int = 0) -> None:
        self.site, self.word = site, secrets.token_urlsafe(24)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot listen on port {port}: {why}; leave --port out for a free one") from None

    @property
    def address(self) -> str:
        """What to open."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.word}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers close connections as they like: nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = SILENCE
    server_version = f"counterflow/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        """A page, for who knows its address."""
        self._answer()

    do_HEAD = do_GET

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        word, slash, page = parts.path.removeprefix("/").partition("/")
        known = hmac.compare_digest(word.encode("utf-8", "replace"), self.server.word.encode())
        hosts = (f"{LOOPBACK}:{self.server.server_port}", f"localhost:{self.server.server_port}")
        if not (known and slash and self.headers.get("Host") in hosts):  # another name for this machine: a page elsewhere may be behind it
            return self._send(
                Response(b"not found: the address printed by counterflow explore is needed\n", "text/plain", HTTPStatus.NOT_FOUND)
            )
        try:
            fields = parse_qs(parts.query, keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            return self._send(_text("too many fields", HTTPStatus.BAD_REQUEST))
        found = self.server.site(page, fields)
        self._send(found or _text("not found", HTTPStatus.NOT_FOUND))

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in (
            HEADERS | response.headers | {"Content-Type": response.kind, "Content-Length": str(len(response.body))}
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def log_message(self, *args: Any) -> None:
        """Addresses hold the random word: they are not written down."""


def _text(said: str, status: HTTPStatus) -> Response:
    return Response(f"{said}\n".encode(), "text/plain; charset=utf-8", status)
