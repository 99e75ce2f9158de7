"""What bench/serve_abuse.py does to a server beside its clients, and the watch of /health; each a process of its own.

    python bench/abusers.py abuse|health PORT MODEL

It ends when its standard input does, and writes what it found as JSON.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import Any

MOST_SILENT = 2048
PAUSE = 0.3  # seconds between two of the same deeds
LONG_PAUSE = 3.0  # of one that costs the server as much as many proper requests


class Abuser:
    """Each method does its deed once and says what came of it; "bad: ..." is what should not have been."""

    def __init__(self, port: int, model: str) -> None:
        self.port, self.model = port, model
        self.draw = random.Random(0)
        self.silent: list[socket.socket] = []
        document = {"model": self.model, "prompt": "x"} | {
            f"unknown_parameter_{number}": 1 for number in range(125_000)
        }
        self.unknown_keys = json.dumps(document).encode()
        self.long_text = json.dumps({"model": self.model, "prompt": "graft " * 690_000}).encode()
        self.wrong_types = json.dumps({"model": self.model, "prompt": [None] * 500_000}).encode()

    def connect(self, first: bytes = b"", receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        client.settimeout(60)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        client.sendall(first)
        return client

    def post(self, body: bytes, path: str = "/v1/completions") -> str:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            status = connection.getresponse().status
        except (OSError, HTTPException):
            return "cut"  # while its body was on the way, to make room for others
        finally:
            connection.close()
        return "400" if status == 400 else f"bad: {status}"

    def half_heads(self) -> str:
        """Twenty more connections that send half a head; the oldest of very many are closed."""
        for _ in range(20):
            self.silent.append(self.connect(b"GET /health HTTP/1.1\r\nX-Slow: "))
        while len(self.silent) > MOST_SILENT:
            self.silent.pop(0).close()
        return "opened"

    def trickled_body(self) -> str:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: 1000\r\n\r\n"
        self.silent.append(self.connect(head.encode() + b"{"))
        for client in self.silent[-20:]:
            with contextlib.suppress(OSError):
                client.sendall(b" ")
        return "opened"

    def unknown_keys_of_3_4_megabytes(self) -> str:
        return self.post(self.unknown_keys)

    def text_of_4_megabytes(self) -> str:
        return self.post(self.long_text)

    def half_a_million_wrong_tokens(self) -> str:
        return self.post(self.wrong_types)

    def bad_json(self) -> str:
        start = f'{{"model": "{self.model}", "prompt": '.encode()
        bodies = [b"", b"\x00", b"[]", b"null", start + b'"\\ud800"}', start + b'"\xff"}', start + b"[" * 100_000,
                  start + b'"x", "seed": NaN}', start + b'"x", "seed": ' + b"9" * 100_000 + b"}",
                  start + b'"x"} 1']  # fmt: skip
        return self.post(self.draw.choice(bodies))

    def bad_messages(self) -> str:
        messages: list[Any] = [{"role": "narrator", "content": "x"}, {"role": "user"}, {"role": "tool", "content": "x"},
                               {"role": "user", "content": [{"type": "image_url"}]}, 5, None, []]  # fmt: skip
        document = {"model": self.model, "messages": [{"role": "user", "content": "x"}, self.draw.choice(messages)]}
        return self.post(json.dumps(document).encode(), "/v1/chat/completions")

    def no_http(self) -> str:
        with self.connect(bytes(self.draw.randrange(256) for _ in range(200)) + b"\r\n\r\n") as client:
            return "cut" if client.recv(65536)[:12] in (b"", b"HTTP/1.1 400") else "bad: answered"

    def hang_up_in_a_stream(self) -> str:
        body = json.dumps({"model": self.model, "prompt": "x", "max_tokens": 200, "stream": True})
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with self.connect(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()) as client:
            return "hung up" if client.recv(100)[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 429", b"") else "bad: no stream"

    def read_nothing(self) -> str:
        self.silent.append(self.connect(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50, 4096))
        return "opened"


ABUSES = ("half_heads", "trickled_body", "unknown_keys_of_3_4_megabytes", "text_of_4_megabytes",
          "half_a_million_wrong_tokens", "bad_json", "bad_messages", "no_http", "hang_up_in_a_stream",
          "read_nothing")  # fmt: skip


def abuse(port: int, model: str, stop: threading.Event) -> dict[str, Counter[str]]:
    """Each abuse in a thread of its own, over and over; what came of them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    counts: dict[str, Counter[str]] = {name: Counter() for name in ABUSES}

    def repeat(name: str) -> None:
        deed: Callable[[], str] = getattr(Abuser(port, model), name)
        while not stop.is_set():
            try:
                counts[name][deed()] += 1
            except OSError as error:  # no connection, or cut to make room for others
                counts[name]["cut" if isinstance(error, ConnectionError) else f"bad: {error}"] += 1
            stop.wait(LONG_PAUSE if name == "read_nothing" else PAUSE)

    threads = [threading.Thread(target=repeat, args=(name,)) for name in ABUSES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def watch_health(port: int, model: str, stop: threading.Event) -> list[tuple[float, str]]:
    """Of each question on a new connection the seconds that it took, and what went wrong, if anything."""
    answers = []
    while not stop.is_set():
        begun, fault = time.monotonic(), ""
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/health")
            if (status := connection.getresponse().status) != 200:
                fault = f"status {status}"
            connection.close()
        except (OSError, HTTPException) as error:
            fault = f"{type(error).__name__}: {error}"
        answers.append((time.monotonic() - begun, fault))
        time.sleep(max(0.0, 0.1 - answers[-1][0]))
    return answers


def wait_for_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> None:
    what: Any = {"abuse": abuse, "health": watch_health}[sys.argv[1]]
    stop = threading.Event()
    threading.Thread(target=wait_for_end, args=(stop,), daemon=True).start()
    json.dump(what(int(sys.argv[2]), sys.argv[3], stop), sys.stdout)


if __name__ == "__main__":
    main()
