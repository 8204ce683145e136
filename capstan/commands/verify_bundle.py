"""A bundle served on this machine for the time of a measurement, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from specs.errors import InputError

START_S = 600.0  # to load a model
STOP_S = 20.0


@contextmanager
def served(bundle: Path, group: str, weights: Path | None, device: str) -> Iterator[str]:
    """The address of `capstan serve` over one group of the bundle; it is stopped at the end.

    `InputError` with what the server said where it does not start.
    """
    from capstan.commands.serve import with_extra

    with_extra("verify")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "capstan", "serve", str(bundle), "--group", group, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--device", device, "--drain", "0"]
    weights = weights or _made(bundle, group)
    command += ["--model", str(weights)] if weights is not None else []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        print(f"serving {bundle} on port {port}", file=sys.stderr)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            _wait(process, f"http://127.0.0.1:{port}", bundle, said)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _made(bundle: Path, group: str) -> Path | None:
    """Weights made on the spot where the bundle names none and its spec holds the model's config itself, as
    `capstan up` does: times do not depend on what the weights say."""
    from runtime.tiny import made_model
    from specs.bundle import read_runtime_config
    from specs.plan import Plan

    _, config = read_runtime_config(bundle, group)
    if config.source.kind == "made" or config.source.directory is not None:
        return None
    architecture = Plan.read(bundle / "plan.json").spec["models"][config.model]["architecture"]
    if not isinstance(architecture, dict):
        return None
    print("the bundle names no weights: random ones are made", file=sys.stderr)
    return made_model(architecture, config.source.seed)


def _wait(process: subprocess.Popen[bytes], address: str, bundle: Path, said: IO[str]) -> None:
    import httpx

    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            said.seek(0)
            lines = [line.strip() for line in said if line.strip()]
            raise InputError(f"is not served: {lines[-1] if lines else 'no reason given'}", file=str(bundle))
        try:
            if httpx.get(f"{address}/health", timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise InputError(f"is not served within {START_S:g} s", file=str(bundle))
