"""Specs and plans as commands read them: errors carry the line of a statement; a plan that was edited is checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstan.console import warn
from specs.errors import InputError, nearest_names

if TYPE_CHECKING:
    from specs.deployment import DeploymentSpec, LoadedDeployment
    from specs.plan import Plan

# Parts of a checkpoint's name that say its weights are quantised.
QUANTISED_NAME = re.compile(
    r"(?:^|[-_.])(fp8|fp4|nvfp4|mxfp4|mxfp8|int8|int4|awq|gptq|w8a8|w8a16|w4a16|w4a8|w4a4|bnb)(?:$|[-_.])",
    re.IGNORECASE,
)
MOST_TOKENS = 2**20  # of a plan's batch limits: tables of step times are this long


def read_spec(path: Path) -> LoadedDeployment:
    """A spec whose every statement is honoured. `InputError` otherwise, with file and line."""
    from specs.deployment import read_deployment

    loaded = read_deployment(path)
    loaded.refuse_unhonoured()
    return loaded


@contextmanager
def at_its_line(loaded: LoadedDeployment) -> Iterator[None]:
    """Give errors that name a field of the spec, but no file, the file and the line of that field.

    An error about a whole file that the spec names (missing, not gzip, ...) gets the line that names it.
    """
    try:
        yield
    except InputError as error:
        if error.file is None:
            error.file = loaded.file
            error.line = error.line or _line(loaded, error.field or "")
        elif error.line is None and error.field is None:
            for field, path in _named_files(loaded):
                if path == Path(error.file):
                    error.message = f"{error.file} {error.message}"
                    error.file, error.line, error.field = loaded.file, _line(loaded, field), field
        raise


def _line(loaded: LoadedDeployment, field: str) -> int | None:
    """The line of the field itself, else of the nearest statement around it."""
    while field:
        if field in loaded.lines:
            return loaded.lines[field]
        field = field.rpartition(".")[0]
    return None


def _named_files(loaded: LoadedDeployment) -> Iterator[tuple[str, Path]]:
    """(field, path) of the traces and histograms of the spec."""
    for index, item in enumerate(loaded.spec.traffic):
        if item.trace is not None:
            yield f"traffic[{index}].trace.file", loaded.base_dir / item.trace.file
        for name, length in (("prompt_tokens", item.prompt_tokens), ("output_tokens", item.output_tokens)):
            if length is not None and length.kind == "histogram":
                yield f"traffic[{index}].{name}.histogram", loaded.base_dir / length.file


def refuse_unwritable(output: Path) -> None:
    """`InputError` where the file `output` cannot be written: asked before minutes of work are lost on it.

    Missing folders are made when the file is written, so the nearest one that exists must be writable.
    """
    if output.is_dir():
        raise InputError("is a folder", file=str(output), expected="a file such as plan.json")
    if output.exists() and not output.is_file():
        raise InputError("cannot be written (not a regular file)", file=str(output), expected="a file")
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"cannot be written ({folder} is no folder)", file=str(output))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot be written ({folder} may not be written)", file=str(output))


def warn_of_quantised_names(spec: DeploymentSpec, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Warn of checkpoints that are called quantised while their config.json, by model, does not say so.

    Such a model is planned in its 16-bit type unless the spec states `weights`, which is then taken at its word.
    """
    from specs.architecture import stated_quantisation

    for name, model in spec.models.items():
        config = configs[name]
        if model.weights or stated_quantisation(config):
            continue
        called = model.architecture if isinstance(model.architecture, str) else str(config.get("_name_or_path") or "")
        called = called.removesuffix("/config.json").rstrip("/").rpartition("/")[2]
        found = QUANTISED_NAME.search(called)
        if found:
            warn(
                f"models.{name}: {called!r} is called {found[1]}, but its config states no quantization_config, so "
                "16-bit weights are planned; add it from the checkpoint's own config.json, or state `weights:`"
            )


def read_plan(path: Path, *, check_laws: bool = True) -> Plan:
    """A plan whose parts fit together.

    A plan is a file that people may edit. `InputError` names the field that refers to something the plan does not hold.
    Laws that hold no longer (`check_laws`) are warned of on stderr: what the plan says of itself is then out of date.
    """
    from specs.deployment import resolved
    from specs.handoffs import check_handoffs
    from specs.plan import Plan

    plan = Plan.read(path)
    try:
        spec = _embedded_spec(plan)
        _parts_fit(plan, spec)
        check_handoffs(plan)
    except InputError as error:
        error.file = str(path)
        raise
    plan = plan.model_copy(update={"spec": resolved(spec)})  # defaults that an edit took out
    if check_laws:
        _warn_of_broken_laws(plan)
    return plan


def with_engine_profile(plan: Plan, path: Path | None) -> Plan:
    """The plan with the profile of its engine that `capstan calibrate --url` wrote; as it is where `path` is None.

    `InputError` where the file is no profile of an engine, or of one that the plan does not use.
    """
    if path is None:
        return plan
    from specs.profile import EngineProfile

    profile = EngineProfile.read(path)
    used = sorted({group.engine for group in plan.groups})
    if profile.name not in used:
        raise InputError(
            f"is a profile of {profile.name!r}, which the plan does not use",
            file=str(path),
            field="name",
            expected=" or ".join(used),
        )
    return plan.model_copy(update={"engines": {**plan.engines, profile.name: profile}})


def _parts_fit(plan: Plan, spec: DeploymentSpec) -> None:
    pools = {pool.name: pool for pool in spec.hardware.pools}
    if not plan.groups:
        raise InputError("is empty", field="groups", expected="at least one replica group")
    for index, group in enumerate(plan.groups):
        at = f"groups[{index}]"
        _known(group.model, spec.models, f"{at}.model", "a model of the plan's spec")
        _known(group.model, plan.architectures, f"{at}.model", "a model with its config in `architectures`")
        for stage in group.machines:
            _known(stage.pool, pools, f"{at}.pool", "a pool of the plan's spec")
        _known(group.engine, plan.engines, f"{at}.engine", "an engine with its facts in `engines`")
        for pool, each in ((pools[name], gpus) for name, gpus in group.gpus_by_pool.items()):
            for table, name in ((plan.devices, "devices"), (plan.profiles, "profiles")):
                _known(pool.device, table, name, f"the facts of {pool.device}, which {pool.name} holds")
            if group.replicas * each > pool.count:
                used = f"{group.replicas} replicas need {group.replicas * each} GPUs, {pool.name} has {pool.count}"
                raise InputError(used, field=f"{at}.replicas", expected=f"at most {pool.count // each}")
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if getattr(group.limits, name) > MOST_TOKENS:
                value = getattr(group.limits, name)
                raise InputError(
                    f"{value} is absurdly large", field=f"{at}.limits.{name}", expected=f"at most {MOST_TOKENS}"
                )
    _twice([group.id for group in plan.groups], "groups")
    _routes_fit(plan, spec)


def _routes_fit(plan: Plan, spec: DeploymentSpec) -> None:
    classes = [traffic.name for traffic in spec.traffic]
    for index, traffic in enumerate(spec.traffic):
        _known(traffic.model, spec.models, f"spec.traffic[{index}].model", "a model of the plan's spec")
    for index, route in enumerate(plan.routes):
        at = f"routes[{index}]"
        _known(route.group, [group.id for group in plan.groups], f"{at}.group", "a group of the plan")
        _known(route.request_class, classes, f"{at}.request_class", "a class of the plan's traffic")
    predicted = [prediction.request_class for prediction in plan.predictions.classes]
    for name in classes:
        total = sum(route.share for route in plan.routes if route.request_class == name)
        if abs(total - 1) > 1e-6:
            raise InputError(f"shares of class {name} add up to {total:g}", field="routes", expected="1")
        if name not in predicted:
            raise InputError(f"class {name} is missing", field="predictions.classes", expected="every class")
    for load in [group.id for group in plan.groups]:
        if load not in [prediction.group for prediction in plan.predictions.groups]:
            raise InputError(f"group {load} is missing", field="predictions.groups", expected="every group")


def _embedded_spec(plan: Plan) -> DeploymentSpec:
    from pydantic import ValidationError

    from specs.deployment import DeploymentSpec, refuse_unhonoured

    try:
        spec = DeploymentSpec.model_validate(plan.spec)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["spec", *(str(part) for part in first["loc"])])
        raise InputError(first["msg"], field=field) from None
    for name, items in (("models", spec.models), ("traffic", spec.traffic), ("hardware.pools", spec.hardware.pools)):
        if not items:
            raise InputError("is empty", field=f"spec.{name}", expected="at least one")
    refuse_unhonoured(spec, planning=False)
    return spec


def _known(name: str, names: Iterable[str], field: str, expected: str) -> None:
    known = tuple(names)
    if name not in known:
        raise InputError(f"{name!r} is not there", field=field, expected=expected, nearest=nearest_names(name, known))


def _twice(names: list[str], field: str) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"the id {name!r} stands twice", field=f"{field}[{index}].id", expected="different ids")


def _warn_of_broken_laws(plan: Plan) -> None:
    from planner.optimize.certify import recheck

    broken = [check for check in recheck(plan) if not check.holds]
    if plan.certificate.is_stated and broken:
        warn(f"this deployment does not keep {len(broken)} of its promises, the first: {broken[0].law}")
        return
    for check in broken[:3]:
        warn(f"this plan breaks a law of its certificate: {check.law}: {check.left:g} {check.relation} {check.right:g}")
    if len(broken) > 3:
        warn(f"and {len(broken) - 3} laws more; plan again instead of editing")
