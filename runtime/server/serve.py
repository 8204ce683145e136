"""Run the server: the port is taken before the model is loaded, answers from when it is, and a stop is graceful."""

from __future__ import annotations

import socket
import threading
from types import FrameType
from typing import Any

import uvicorn

from runtime.engine import Engine
from runtime.server.app import create_app
from runtime.server.metrics import Metrics
from specs.errors import InputError

DRAIN_S = 30.0  # answers under way may take so long after a stop; orchestrators usually kill after 30 s or more

UNREAD_S = 5  # a client may take so long to read the end of its answer after that


def take_port(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is known before minutes of loading; port 0 takes a free one.

    It does not listen yet: until the model is loaded clients are refused at once, as an orchestrator's probes expect.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"is {port}", field="port", expected="0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{host!r} is no address of this machine ({error})", field="host") from None
    try:
        return _bound(socket.socket(family, kind, protocol), address)
    except OSError:
        pass  # perhaps only because of closed connections of a server that ended a moment ago
    try:
        again = socket.socket(family, kind, protocol)
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bound(again, address)
    except OSError as error:
        raise _unusable(host, port, error) from None


def _bound(free: socket.socket, address: Any) -> socket.socket:
    try:
        free.bind(address)
    except OSError:
        free.close()
        raise
    return free


def _listen(taken: socket.socket) -> None:
    """From here on clients connect. `InputError` where another process came to listen on the port in the meantime."""
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not before: it lets others bind the port, too
        taken.listen(128)
    except OSError as error:
        host, port = taken.getsockname()[:2]
        raise _unusable(host, port, error) from None


def _unusable(host: str, port: int, error: OSError) -> InputError:
    message = f"port {port} on {host} cannot be used ({error.strerror or error})"
    return InputError(message, field="port", expected="a free port; 0 takes any")


class Server(uvicorn.Server):
    """uvicorn, with a stop that the engine knows about: first signal drains, second ends at once."""

    def __init__(self, config: uvicorn.Config, engine: Engine, drain_s: float) -> None:
        super().__init__(config)
        self._engine = engine
        self._drain_s = drain_s
        self._stopping = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new requests, let answers under way end for `drain_s`, then abort them and close."""
        self.stop(0.0 if self._stopping else self._drain_s)

    def stop(self, drain_s: float) -> None:
        """The same from code. Returns at once. Until the last answer has ended the port stays open: a new request is
        refused with 503, and `/health` says that the server drains."""
        self._stopping = True
        # Not in the signal handler itself: stopping waits for the engine's thread.
        threading.Thread(target=self._drain, args=(drain_s,), name="capstan-stop", daemon=True).start()

    def _drain(self, drain_s: float) -> None:
        try:
            self._engine.stop(drain_s)
        finally:
            self.should_exit = True


def make_server(engine: Engine, model: str, metrics: Metrics, *, drain_s: float = DRAIN_S) -> Server:
    """A server over a started engine; run it with `serve_on`."""
    config = uvicorn.Config(
        create_app(engine, model, metrics),
        log_level="warning",
        access_log=False,
        lifespan="off",
        # The engine has stopped by then and streams end by themselves; this only bounds a client that does not read.
        timeout_graceful_shutdown=UNREAD_S,
    )
    return Server(config, engine, drain_s)


def serve_on(server: Server, taken: socket.socket) -> None:
    """Serve on a socket from `take_port` until stopped (SIGTERM, SIGINT, or `Server.stop`)."""
    _listen(taken)
    server.run(sockets=[taken])


def serve_in_thread(server: Server, taken: socket.socket) -> threading.Thread:
    """The same in a thread, for a caller that talks to its own server; end it with `Server.stop`."""
    _listen(taken)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, name="capstan-server", daemon=True)
    thread.start()
    return thread


def address_of(taken: socket.socket) -> str:
    """`http://HOST:PORT` of a listening socket, with a host that a client on this machine can reach."""
    name: Any = taken.getsockname()
    host, port = name[0], name[1]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
