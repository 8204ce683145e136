"""From a bundle and a model directory to an engine: what `capstan serve` and `capstan up` share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from runtime.engine import Engine
from runtime.scheduler import Scheduler
from runtime.server.metrics import Metrics
from specs.bundle import RUNTIME, read_runtime_config
from specs.errors import InputError


@dataclass(frozen=True)
class Service:
    """An engine with the name and the directory of its model."""

    engine: Engine
    metrics: Metrics
    model: str
    model_dir: Path
    device: str


def model_directory(bundle: str | Path, group: str | None, given: str | Path | None = None) -> Path:
    """The folder of the group's weights: `given`, else what the bundle names, else a model made from its seed.

    `InputError` where the bundle names none and none is given, or the folder does not exist.
    """
    folder, config = read_runtime_config(bundle, group)
    named = given if given is not None else config.source.directory
    if named is not None:
        path = Path(named)
        if not path.is_dir():
            raise InputError("is no directory", file=str(path), expected="a checkpoint: config, safetensors, tokenizer")
        return path
    if config.source.kind != "made":
        raise InputError(
            f"names no weights for {config.model!r}",
            file=str(folder / RUNTIME),
            field="source.directory",
            expected="--model DIR, a checkpoint of that model",
        )
    from runtime.tiny import made_model

    return made_model(json.loads((folder / config.config).read_text(encoding="utf-8")), config.source.seed)


def load_service(
    bundle: str | Path, group: str | None = None, model_dir: str | Path | None = None, device: str = "auto"
) -> Service:
    """Load program, weights and tokenizer; the engine is not started. Errors as `open_group`, `load_weights`."""
    from runtime.config import open_group, refuse_other_model
    from runtime.launch import device_target
    from runtime.model_runner import choose_device, runner_of
    from runtime.tokenizer import load_tokenizer

    chosen = choose_device(device)
    if chosen.type == "cpu":
        served = open_group(bundle, group)
    else:
        served = open_group(bundle, group, "triton", device_target(chosen.index or 0))
    directory = model_directory(bundle, group, model_dir)
    refuse_other_model(directory, served)
    runner = runner_of(served, directory, chosen)
    config = served.config
    scheduler = Scheduler(config.limits, served.num_blocks, config.cache.block_size_tokens, config.scheduling)
    metrics = Metrics(config.model)
    tokenizer = load_tokenizer(directory)
    engine = Engine(scheduler, runner, tokenizer, served.manifest.vocab_size, observer=metrics, sampler=runner.sample)
    return Service(engine, metrics, config.model, directory, chosen.type)
