"""`capstan calibrate -o PROFILE`: measure this machine's CPU and fit the profile that plans for `cpu` are made with."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def run_calibrate(output: Path | None = None, measurements: Path | None = None, json_output: bool = False) -> None:
    """Measure for about ten seconds, fit, write. `output` None: where `capstan up` looks for it.

    `measurements`: also write what was measured. Raises `InputError` where a file cannot be written.
    """
    from capstan.commands.machine import CPU, profile_path, this_machine
    from capstan.commands.serve import with_extra

    with_extra("calibrate")
    import specs
    from capstan.console import print_json
    from codegen.bundle import compile_plan
    from planner.cost.calibrated import MeasuredModel, fit_profile
    from planner.plan import make_plan
    from runtime.calibrate import measure_machine, measure_steps
    from runtime.service import load_service
    from specs.architecture import load_architecture
    from specs.bundle import ModelSource
    from specs.catalog import load_profile
    from specs.deployment import load_deployment

    example = Path(specs.__file__).parent / "examples" / "quickstart.yaml"
    machine = this_machine()
    seen = measure_machine(CPU, _say)
    with tempfile.TemporaryDirectory(prefix="capstan-calibrate-") as folder:
        # Steps are measured on the model of the quickstart: small enough that what is not arithmetic shows.
        plan = make_plan(load_deployment(example), example.parent, machine=machine)
        group = plan.groups[0]
        bundle = Path(folder) / "bundle"
        compile_plan(plan, bundle, [CPU], model_sources={group.model: ModelSource(kind="made")})
        steps = measure_steps(load_service(bundle, group.id, device=CPU).engine, _say)
    seen = seen.model_copy(update={"steps": steps, "model": group.model})
    if measurements is not None:
        seen.write(measurements)
    model = MeasuredModel(
        load_architecture(plan.architectures[group.model]),
        group.weights_dtype,
        group.cache.kv_dtype,
        plan.engines["capstan"],
    )
    profile = fit_profile(seen, machine.device, load_profile(CPU), model)
    target = output if output is not None else profile_path()
    profile.write(target)
    if json_output:
        print_json(profile.model_dump(mode="json"))
        return
    errors = profile.error_quantiles
    print(
        f"wrote {target}: {len(seen.kernels)} kernel rows, {len(seen.steps)} step rows; error of held-out steps "
        f"{100 * errors['p50']:.0f} % in the median, {100 * errors['p90']:.0f} % at p90"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
