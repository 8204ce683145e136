"""`capstan serve BUNDLE`: run one group of a bundle here, behind the OpenAI protocol, until stopped."""

from __future__ import annotations

import sys
from pathlib import Path


def run_serve(
    bundle: Path,
    group: str | None = None,
    host: str | None = None,
    port: int | None = None,
    model_dir: Path | None = None,
    device: str = "auto",
    drain_s: float = 30.0,
) -> None:
    """Verify the bundle, take the port, load, serve. SIGTERM or Ctrl-C drains for `drain_s` seconds; a second one ends
    at once.

    `host`, `port`: as the bundle says where None. Raises `InputError` for what is wrong with bundle, port or weights.
    """
    with_extra("serve")
    from runtime.config import open_group

    config = open_group(bundle, group).config
    from runtime.server.serve import address_of, make_server, serve_on, take_port

    taken = take_port(host or config.host, config.port if port is None else port)
    with taken:
        from runtime.service import load_service

        print(f"loading {config.model} ({config.architecture})", file=sys.stderr)
        service = load_service(bundle, group, model_dir, device)
        service.engine.start()
        server = make_server(service.engine, service.model, service.metrics, drain_s=drain_s)
        print(f"serving {service.model} on {service.device} at {address_of(taken)}/v1", file=sys.stderr)
        try:
            serve_on(server, taken)
        finally:
            service.engine.stop()


def with_extra(command: str) -> None:
    """`InputError` naming the extra to install where the runtime's packages are absent."""
    from importlib.util import find_spec

    from specs.errors import InputError

    needed = ("torch", "safetensors", "fastapi", "uvicorn", "prometheus_client", "httpx")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise InputError(
            f"`capstan {command}` needs {', '.join(missing)}", expected="pip install 'capstan-llm[runtime]'"
        )
