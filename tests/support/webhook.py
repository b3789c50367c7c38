"""A webhook that really listens on this machine and keeps what it accepted."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "s3cret-token"


class Webhook(ThreadingHTTPServer):
    """Keeps the JSON bodies that it accepted; ``status`` is what it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.status = 200
        self.accepted: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        """The address in apprise's spelling."""
        return f"json://127.0.0.1:{self.server_address[1]}/{SECRET}"

    @property
    def titles(self) -> list[str]:
        """Of what it accepted, in order."""
        return [body["title"] for body in self.accepted]


class Receiver(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.status == 200:
            self.server.accepted.append(body)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to the terminal."""


@contextmanager
def listening() -> Iterator[Webhook]:
    """A webhook on a free port while the context lasts."""
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
