"""Run the server: the port is taken before the model is loaded, and a stop is graceful."""

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


def take_port(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is known before minutes of loading; port 0 takes a free one."""
    if not 0 <= port <= 65535:
        raise InputError(f"is {port}", field="port", expected="0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{host!r} is no address of this machine ({error})", field="host") from None
    taken = socket.socket(family, kind, protocol)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(128)
    except OSError as error:
        taken.close()
        raise InputError(
            f"port {port} on {host} cannot be used ({error.strerror or error})",
            field="port",
            expected="a free port; 0 takes any",
        ) from None
    return taken


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
        self.should_exit = True

    def stop(self, drain_s: float) -> None:
        """The same from code. Returns at once."""
        self._stopping = True
        self.should_exit = True
        # Not in the signal handler itself: stopping waits for the engine's thread.
        threading.Thread(target=self._engine.stop, args=(drain_s,), name="capstan-stop", daemon=True).start()


def make_server(engine: Engine, model: str, metrics: Metrics, *, drain_s: float = DRAIN_S) -> Server:
    """A server over a started engine; run it with `serve_on`."""
    config = uvicorn.Config(
        create_app(engine, model, metrics),
        log_level="warning",
        access_log=False,
        lifespan="off",
        # Streams end by themselves once the engine has stopped; this only bounds a client that does not read.
        timeout_graceful_shutdown=int(drain_s) + 5,
    )
    return Server(config, engine, drain_s)


def serve_on(server: Server, taken: socket.socket) -> None:
    """Serve on a socket from `take_port` until stopped (SIGTERM, SIGINT, or `Server.stop`)."""
    server.run(sockets=[taken])


def serve_in_thread(server: Server, taken: socket.socket) -> threading.Thread:
    """The same in a thread, for a caller that talks to its own server; end it with `Server.stop`."""
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
