"""`capstan up SPEC`: plan, compile and serve in one go; `--smoke` does it unattended, checks the answers and stops."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.facts import Machine
    from runtime.service import Service
    from specs.bundle import ModelSource
    from specs.deployment import DeploymentSpec
    from specs.plan import Plan, ReplicaGroup

# Log-probabilities of a program and of its reference, both of the same weights, may differ by so much
TOLERANCE = {"fp32": 2e-3, "fp16": 3e-2, "bf16": 0.2}


def run_up(
    spec: Path,
    model_dir: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    smoke: bool = False,
    profile: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    drain_s: float = 30.0,
) -> None:
    """Serve the spec's model until stopped, or check it and return.

    `model_dir`: a checkpoint (config, safetensors, tokenizer) in the place of the model. `port` None: 8000, or any free
    one with `smoke`. `profile`: a calibrated profile of this CPU (default: the one `capstan calibrate` wrote, if any).
    Raises `InputError`, `NoPlanError` as the parts do, `SmokeError` for a wrong answer.
    """
    from capstan.commands.machine import this_machine
    from capstan.commands.serve import with_extra
    from capstan.input_files import at_its_line, read_spec

    with_extra("up")
    loaded = read_spec(spec)
    with at_its_line(loaded):
        declared, name = _declared(loaded.spec, spec.parent, model_dir)
        source = _source(declared, name, spec.parent, seed)
    machine = this_machine(profile)
    from runtime.server.serve import take_port

    with take_port(host, (0 if smoke else 8000) if port is None else port) as taken:
        with at_its_line(loaded):
            plan, group = _plan(declared, spec.parent, machine)
        bundle = _compile(plan, group, source, device)
        from runtime.server.serve import address_of, make_server, serve_in_thread, serve_on
        from runtime.service import load_service

        _say(f"loading {name}")
        service = load_service(bundle, group.id, device=device)
        service.engine.start()
        server = make_server(service.engine, service.model, service.metrics, drain_s=drain_s)
        try:
            if smoke:
                thread = serve_in_thread(server, taken)
                _smoke(service, address_of(taken), TOLERANCE[group.weights_dtype.value])
                _compare(machine, plan, group, service, address_of(taken))
                server.stop(0.0)
                thread.join()
                return
            address = address_of(taken)
            _say(f"serving {name} on {service.device} at {address}/v1; stop with Ctrl-C. Try:")
            _say(
                f"  curl {address}/v1/completions -H 'Content-Type: application/json' "
                f"""-d '{{"model": "{name}", "prompt": "Hello", "max_tokens": 32, "stream": true}}'"""
            )
            serve_on(server, taken)
        finally:
            service.engine.stop()


def _declared(declared: DeploymentSpec, base_dir: Path, model_dir: Path | None) -> tuple[DeploymentSpec, str]:
    """The spec, the user's checkpoint in its place, and the name of its one model."""
    from specs.compilable import refuse_uncompilable
    from specs.errors import InputError

    if len(declared.models) != 1:
        raise InputError(
            f"declares {len(declared.models)} models",
            field="models",
            expected="one model; `capstan compile` and `capstan serve --group` run the groups of a larger plan",
        )
    if declared.choices.engine != ("capstan",):
        raise InputError(
            f"plans for {', '.join(declared.choices.engine)}, which is exported and not served here",
            field="choices.engine",
            expected="engine: capstan (or `capstan plan` and `capstan export`)",
        )
    name, model = next(iter(declared.models.items()))
    if model_dir is not None:
        if not (model_dir / "config.json").is_file():
            raise InputError(
                "holds no config.json", file=str(model_dir), expected="a checkpoint: config, safetensors, tokenizer"
            )
        model = model.model_copy(update={"architecture": str(model_dir.resolve())})
        declared = declared.model_copy(update={"models": {name: model}})
    refuse_uncompilable(declared, base_dir)
    return declared, name


def _source(declared: DeploymentSpec, name: str, base_dir: Path, seed: int) -> ModelSource:
    """Where the weights come from: the model's directory, or made up where the spec holds the config itself."""
    from specs.bundle import ModelSource
    from specs.errors import InputError

    architecture = declared.models[name].architecture
    if not isinstance(architecture, str):
        return ModelSource(kind="made", seed=seed)
    path = base_dir / architecture
    if path.is_file():
        path = path.parent
    if path.is_dir():
        return ModelSource(kind="directory", directory=str(path.resolve()))
    raise InputError(
        f"{architecture!r} is a name of the catalogue, which has no weights",
        field=f"models.{name}.architecture",
        expected="--model DIR, or a checkpoint directory as the architecture",
    )


def _plan(declared: DeploymentSpec, base_dir: Path, machine: Machine) -> tuple[Plan, ReplicaGroup]:
    import capstan
    from planner.plan import make_plan
    from specs.errors import InputError

    _say(f"planning (profile of this CPU: {machine.profile.confidence})")
    plan = make_plan(declared, base_dir, machine=machine, version=capstan.__version__)
    if len(plan.groups) != 1:
        raise InputError(
            f"its plan has {len(plan.groups)} replica groups",
            field="models",
            expected="one group; `capstan compile` and `capstan serve --group` run the groups of a larger plan",
        )
    group = plan.groups[0]
    for one in plan.predictions.classes:
        tpot = f", TPOT p90 {1e3 * one.tpot_s['p90']:.1f} ms" if "p90" in one.tpot_s else ""
        _say(f"predicted for {one.request_class}: TTFT p90 {1e3 * one.ttft_s['p90']:.1f} ms{tpot}")
    if group.replicas > 1:
        _say(f"note: the plan has {group.replicas} replicas of {group.device}; this process runs one")
    return plan, group


def _compile(plan: Plan, group: ReplicaGroup, source: ModelSource, device: str) -> Path:
    """The bundle of this plan in the user's cache directory, under a name that its content gives."""
    from codegen.bundle import compile_plan
    from runtime.model_runner import choose_device
    from specs.directories import cache_home

    targets = None
    if choose_device(device).type == "cpu":
        targets = ["cpu"]
        if plan.devices[group.device].vendor != "cpu":
            _say(f"note: planned for {group.device}; there is none here, so the torch program runs on the CPU")
    content = plan.to_json() + source.model_dump_json() + repr(targets)
    bundle = cache_home() / "bundles" / hashlib.sha256(content.encode()).hexdigest()[:16]
    if bundle.is_dir() and not (bundle / "manifest.json").is_file():
        shutil.rmtree(bundle)  # a damaged entry of the cache, not somebody's folder
    _say(f"compiling to {bundle}")
    compile_plan(plan, bundle, targets, groups=[group.id], model_sources={group.model: source})
    return bundle


def _smoke(service: Service, address: str, tolerance: float) -> None:
    from runtime.reference import Reference
    from runtime.smoke import smoke

    tokenizer = service.engine.tokenizer
    _say(f"checking {address} against the reference")
    chat = tokenizer.chat if tokenizer.has_chat_template else None
    if chat is None:
        _say("the model has no chat template: only completions are checked")
    report = smoke(address, service.model, Reference(service.model_dir), tokenizer.encode, chat, tolerance=tolerance)
    print(
        f"smoke: {report.requests} requests, {report.tokens} tokens checked, largest difference of a log-probability "
        f"{report.worst_difference:.1e} (allowed {tolerance:g}), {report.seconds:.1f} s"
    )


def _compare(machine: Machine, plan: Plan, group: ReplicaGroup, service: Service, address: str) -> None:
    """One request alone: the TPOT that the planner's cost model gives those very steps, and what a client saw.

    Only on a CPU that was planned for, whose memory and cores (and profile, if any) the cost model has; and not for
    windowed attention, which its single steps leave out.
    """
    from specs.architecture import load_architecture

    architecture = load_architecture(plan.architectures[group.model])
    if service.device != "cpu" or group.device != machine.device.name or architecture.window_tokens is not None:
        return
    from planner.cost.calibrated import MeasuredModel, predict_steps
    from runtime.smoke import TIMED_PROMPT_TOKENS, TIMED_TOKENS, observed_tpot
    from specs.measurements import StepRow

    model = MeasuredModel(architecture, group.weights_dtype, group.cache.kv_dtype, plan.engines["capstan"])
    steps = [
        StepRow(
            seconds=1.0,  # not read
            tokens=1,
            sequences=1,
            decodes=1,
            decode_context_tokens=TIMED_PROMPT_TOKENS + made,
            prefill_chunks=0,
            prefill_pairs=0,
        )
        for made in range(1, TIMED_TOKENS)
    ]
    predicted_s = float(predict_steps(machine.profile, steps, machine.device, model).mean())
    observed_s = observed_tpot(address, service.model)
    print(
        f"one request alone: predicted TPOT {1e3 * predicted_s:.2f} ms (profile of this CPU: "
        f"{machine.profile.confidence}), observed {1e3 * observed_s:.2f} ms"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
