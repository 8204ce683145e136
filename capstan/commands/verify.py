"""`capstan verify`: the plan's own traffic sent to a live server; what was predicted beside what was measured."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstan.commands.verify_table import print_comparison
from capstan.console import err, print_json
from capstan.input_files import read_plan, refuse_unwritable, with_engine_profile
from specs.errors import InputError

if TYPE_CHECKING:
    from planner.simulate import DeclaredLoop, Workload
    from runtime.replay import Target
    from specs.deployment import DeploymentSpec
    from specs.plan import Plan

SECONDS = 120.0


@dataclass(frozen=True)
class VerifyOptions:
    """Of the traffic (`rate` and `scale` exclude each other), of the server, of the files."""

    output: Path = Path("measurements.json")
    group: str | None = None  # the URL is one replica of this group; None: the front of all
    rate: float | None = None
    scale: float | None = None
    seconds: float = SECONDS
    concurrency: int | None = None  # a closed loop instead of the declared times
    traffic: Path | None = None  # another spec, whose traffic is sent instead of the plan's
    seed: int | None = None
    model: str | None = None  # name that the server knows
    api: str = "auto"
    api_key_env: str | None = None
    timeout: float = 300.0
    engine_profile: Path | None = None
    weights: Path | None = None  # checkpoint folder of a bundle
    device: str = "auto"  # of a bundle


def run_verify(
    bundle: Path | None,
    url: str | None,
    plan: Path | None,
    result: Path | None,
    json_output: bool,
    asked: VerifyOptions,
) -> None:
    """Measure and compare; the measurements are written, also those of a run that was cut short.

    `bundle`: served here for the time of the run. `result`: a file of measurements is compared, nothing is sent.
    Raises `InputError` for what is wrong with the input, and where no request at all was served.
    """
    given = {"BUNDLE": bundle, "--url": url, "--result": result}
    stated = [name for name, value in given.items() if value is not None]
    if len(stated) != 1:
        raise InputError(f"{' and '.join(stated) or 'nothing'} is given", expected="one of BUNDLE, --url, --result")
    _check(asked)
    if bundle is not None:
        if plan is not None:
            raise InputError("a bundle holds its plan", field="--plan", expected="no such option with BUNDLE")
        plan = bundle / "plan.json"
    if plan is None:
        raise InputError("is missing", field="--plan", expected="the plan that the server was set up by")
    document = with_engine_profile(read_plan(plan), asked.engine_profile)
    if asked.traffic is not None:
        from capstan.commands.simulate import under_traffic

        document, _ = under_traffic(document, asked.traffic)
    if result is not None:
        from capstan.commands.verify_result import compare_result

        report = compare_result(result, document, asked.group)
    else:
        refuse_unwritable(asked.output)
        with_client("verify")
        part = _Part.of(document, plan, asked, one_group=bundle is not None)
        with _served(bundle, part, asked) if bundle is not None else nullcontext(url) as address:
            report = _verify(part, plan, str(address), asked)
    if json_output:
        print_json(report)
    else:
        print_comparison(report)
    _refuse_nothing(report, url or str(bundle or result))


def _check(asked: VerifyOptions) -> None:
    if asked.rate is not None and asked.scale is not None:
        raise InputError("is given beside --rate", field="--scale", expected="one of the two")
    for option, value, most in (
        ("--scale", asked.scale, 1e6),
        ("--seconds", asked.seconds, 7 * 86400.0),
        ("--timeout", asked.timeout, 86400.0),
        ("--concurrency", asked.concurrency, 100_000),
    ):
        if value is not None and not 0 < value <= most:
            raise InputError(f"{value:g} is out of range", field=option, expected=f"above 0, at most {most:g}")
    if asked.api not in ("auto", "completions", "chat"):
        raise InputError(f"{asked.api!r} is not known", field="--api", expected="auto | completions | chat")


def with_client(command: str) -> None:
    """`InputError` where the package that sends requests is absent; nothing else of the runtime is needed."""
    from importlib.util import find_spec

    if find_spec("httpx") is None:
        raise InputError(f"`capstan {command}` needs httpx", expected="pip install 'capstan-llm[runtime]'")


def target_of(url: str, model: str | None, usual: str, api: str, api_key_env: str | None) -> Target:
    """Where to send. The key is read from an environment variable and stays in memory."""
    from runtime.replay import Target

    key = None
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise InputError(f"the variable {api_key_env!r} is not set", field="--api-key-env", expected="a set one")
    return Target(url, model, usual, api, key)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Part:
    """What of the plan stands behind the URL, and the traffic that it gets."""

    plan: Plan
    spec: DeploymentSpec
    model: str
    workload: Workload
    seed: int
    clients: DeclaredLoop | None = None  # that send it, in place of its times

    @classmethod
    def of(cls, plan: Plan, path: Path, asked: VerifyOptions, one_group: bool) -> _Part:
        from capstan.commands.verify_traffic import of_model, one_replica
        from planner.plan_simulation.clients import is_closed_loop
        from planner.plan_simulation.traffic import planned_workload

        group = asked.group
        if one_group and group is None and len(plan.groups) == 1:
            group = plan.groups[0].id
        with _in_plan(path):
            seed = asked.seed if asked.seed is not None else _seed(plan)
            if is_closed_loop(plan):
                return cls._of_clients(plan, path, asked, group, seed)
            window: dict[str, Any] = {"seconds": asked.seconds, "seed": seed}
            rate = asked.rate
            if asked.scale is not None:
                first = planned_workload(plan, path.parent, **window).workload
                rate = asked.scale * len(first) / first.horizon_s
            drawn = planned_workload(plan, path.parent, rate_per_s=rate, **window)
        plan, workload = one_replica(plan, drawn.workload, group, seed) if group else (plan, drawn.workload)
        model, workload = of_model(plan, drawn.spec, workload, asked.model)
        return cls(plan, drawn.spec, model, workload, seed)

    @classmethod
    def _of_clients(cls, plan: Plan, path: Path, asked: VerifyOptions, group: str | None, seed: int) -> _Part:
        """A plan under a closed loop: its clients are those of one replica where a group is named."""
        from capstan.commands.verify_traffic import alone, of_model, workload_of_clients
        from planner.plan_simulation.traffic import trace_folder
        from planner.simulate import declared_closed_loop
        from specs.deployment import DeploymentSpec

        for option, value in (("--rate", asked.rate), ("--scale", asked.scale), ("--concurrency", asked.concurrency)):
            if value is not None:
                raise InputError("the traffic is a closed loop, which states its own", field=option)
        spec = DeploymentSpec.model_validate(plan.spec)
        loop = declared_closed_loop(spec, trace_folder(plan, spec, path.parent), seed=seed)
        assert loop is not None
        plan = alone(plan, group) if group else plan
        model, workload = of_model(plan, spec, workload_of_clients(spec, loop), asked.model)
        return cls(plan, spec, model, workload, seed, loop)


def _seed(plan: Plan) -> int:
    return plan.certificate.windows[0].seed if plan.certificate.windows else 0


def _verify(part: _Part, path: Path, url: str, asked: VerifyOptions) -> dict[str, Any]:
    from capstan.commands.verify_traffic import closed_load, compared, environment_of, open_load
    from runtime.replay import ReplayOptions, replay
    from specs.architecture import load_architecture

    load = open_load(part.workload)
    if part.clients is not None:
        load = closed_load(part.workload, part.clients.concurrency, None, part.clients.warmup)
    elif asked.concurrency is not None:
        load = closed_load(part.workload, asked.concurrency, asked.seconds)
    target = target_of(url, asked.model, part.model, asked.api, asked.api_key_env)
    vocabulary = load_architecture(part.plan.architectures[part.model]).vocab_size
    with sending() as progress:
        options = ReplayOptions(vocabulary, part.seed, asked.timeout, progress)
        seen = replay(target, (load,), environment_of(part.plan, part.model), options)
    seen = seen.model_copy(update={"plan_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    seen.write(asked.output)
    with _in_plan(path):
        report = compared(part.plan, path.parent, part.spec, part.workload, seen)
    return {**report, "measurements": str(asked.output)}


def _refuse_nothing(report: dict[str, Any], source: str) -> None:
    """No answer at all is no measurement: the exit code says so."""
    if not any(entry["measured"]["status"]["ok"] for entry in report["classes"]):
        raise InputError(
            f"not one request was served ({report['partial'] or 'all were rejected'})",
            file=source,
            expected="a server that answers",
        )


@contextmanager
def _in_plan(path: Path) -> Iterator[None]:
    """Errors about neither a file nor an option are about the plan."""
    try:
        yield
    except InputError as error:
        if error.file is None and not (error.field or "").startswith("--"):
            error.file = str(path)
        raise


@contextmanager
def _served(bundle: Path, part: _Part, asked: VerifyOptions) -> Iterator[str]:
    from capstan.commands.verify_bundle import served

    with served(bundle, part.plan.groups[0].id, asked.weights, asked.device) as address:
        yield address


@contextmanager
def sending() -> Iterator[Any]:
    """A bar of requests done on stderr, where that is a terminal; nothing elsewhere."""
    console = err()
    if not console.is_terminal:
        yield lambda done, of: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("requests", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
