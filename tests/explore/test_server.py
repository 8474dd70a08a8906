"""Who may open the page: this machine, with the whole address, under the machine's own name."""

import http.client
import socket
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from counterflow import ConfigError
from counterflow.explore.server import Response, Server


@contextmanager
def serving(site=lambda page, fields: Response(f"{page} {fields}".encode()) if page in ("", "rank") else None):
    with Server(site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def fetch(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.request(method, path, headers={"Host": f"127.0.0.1:{server.server_port}"} | headers)
    response = connection.getresponse()
    return response.status, response.read().decode(), response.headers


def test_with_the_whole_address_the_page_comes():
    with serving() as server:
        with urllib.request.urlopen(server.address + "rank?up=A+B&down=") as response:
            assert response.read() == b"rank {'up': ['A B'], 'down': ['']}"
        assert server.address.startswith("http://127.0.0.1:") and len(server.word) >= 32


def test_without_the_word_there_is_nothing():
    with serving() as server:
        for path in (
            "/",
            "/rank",
            f"/{server.word[:-1]}/",
            f"/x{server.word}/",
            f"/{server.word}",
            "/?" + server.word,
            "/%C3%A4/",
        ):
            assert fetch(server, path)[0] == 404, path
        status, text, _ = fetch(server, f"/{server.word}/elsewhere")
        assert status == 404 and server.word not in text


def test_sockets_are_refused_without_the_word_and_never_opened():
    asked = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "dGhlIHNhbXBsZQ==", "Sec-WebSocket-Version": "13"}
    with serving() as server:
        assert fetch(server, "/ws", **asked)[0] == 404
        assert fetch(server, f"/{server.word}/", **asked)[0] == 200  # a page, not 101 Switching Protocols


def test_other_names_of_this_machine_are_refused():
    with serving() as server:
        assert fetch(server, f"/{server.word}/", Host=f"evil.example:{server.server_port}")[0] == 404
        assert fetch(server, f"/{server.word}/", Host=f"localhost:{server.server_port}")[0] == 200


def test_only_loopback_listens():
    with serving() as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        own = socket.gethostbyname(socket.gethostname())
        if not own.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((own, server.server_port), timeout=1)


def test_pages_may_load_nothing_and_tell_nobody():
    with serving() as server:
        status, _, headers = fetch(server, f"/{server.word}/")
        policy = headers["Content-Security-Policy"]
        assert status == 200 and "default-src 'none'" in policy and "script-src" not in policy and "http" not in policy
        assert "frame-ancestors 'none'" in policy and headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"


def test_only_questions_are_answered():
    with serving() as server:
        assert fetch(server, f"/{server.word}/", method="POST")[0] == 501
        status, text, headers = fetch(server, f"/{server.word}/", method="HEAD")
        assert (status, text) == (200, "") and int(headers["Content-Length"]) > 0
        assert fetch(server, f"/{server.word}/?" + "&".join("a=1" for _ in range(300)))[0] == 400


def test_a_port_that_is_taken_is_one_error():
    with serving() as server, pytest.raises(ConfigError, match=f"port {server.server_port}: .*in use"):
        Server(server.site, server.server_port)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.address, timeout=1)


def test_the_word_is_never_the_same():
    with serving() as one, serving() as other:
        assert one.word != other.word


def test_files_are_offered_under_their_name():
    with serving(lambda page, fields: Response.download(b"x", "text/csv", "plate.csv")) as server:
        _, _, headers = fetch(server, f"/{server.word}/plate.csv")
        assert headers["Content-Disposition"] == 'attachment; filename="plate.csv"' and headers["Content-Type"] == "text/csv"
