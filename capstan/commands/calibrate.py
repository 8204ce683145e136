"""`capstan calibrate`: measure this machine's GPU or CPU, or read tables measured elsewhere, and fit its profile."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from specs.errors import InputError

if TYPE_CHECKING:
    from planner.cost.measured_tables import MeasuredTable
    from runtime.calibrate_gpu import Gpu
    from specs.measurements import KernelRow
    from specs.profile import DeviceFacts, DeviceProfile

HERE = ("auto", "cpu", "cuda")
Progress = Callable[[float, str], None]  # (share done, what is being done)


def run_calibrate(
    output: Path | None = None,
    measurements: Path | None = None,
    json_output: bool = False,
    device: str = "auto",
    tables_from: Sequence[Path] = (),
    tables: Path | None = None,
    l2: str = "cold",
    seconds: float = 180.0,
) -> None:
    """Fit `tables_from` where given, else measure the `device`: auto (a GPU where torch finds one), cpu, cuda, or the
    catalogue name of the GPU that is here. No profile is written where anything is refused.

    `output` None: the user's configuration directory. `measurements`: also write what was measured; `tables`: a folder
    for kernel tables of it. Raises `InputError` for input that is wrong, a device that is not there, and files that
    cannot be written.
    """
    from capstan.input_files import refuse_unwritable

    for path in (output, measurements):
        if path is not None:
            refuse_unwritable(path)
    if tables_from:
        for option, value in (("--measurements", measurements), ("--tables", tables)):
            if value is not None:
                raise InputError("nothing is measured with --from", field=option, expected="no such option")
        _from_tables(tables_from, device, output, json_output)
        return
    from capstan.commands.serve import with_extra

    if device not in HERE:
        _known_gpu(device)  # a wrong name is wrong on every machine
    if l2 not in ("cold", "warm"):
        raise InputError(f"{l2!r} is not known", field="--l2", expected="cold or warm")
    if not 0 < seconds <= 86400:
        raise InputError(f"{seconds:g} is out of range", field="--seconds", expected="a number of seconds above 0")
    with_extra("calibrate")
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        if tables is not None:
            raise InputError("kernel tables are of GPUs", field="--tables", expected="no such option on a CPU")
        _cpu(output, measurements, json_output)
        return
    _gpu(device, output, measurements, json_output, tables, l2, seconds)


def _known_gpu(name: str) -> DeviceFacts:
    from specs.catalog import load_device

    try:
        return load_device(name)
    except InputError as error:
        error.field = "--device"
        raise


def _from_tables(paths: Sequence[Path], device: str, output: Path | None, json_output: bool) -> None:
    from capstan.table_files import read_table_file, table_paths
    from planner.cost.measured_tables import device_of_tables, measured_table

    facts = None if device == "auto" else _known_gpu(device)
    found = []
    for path in table_paths(paths):
        columns, first_line = read_table_file(path)
        found.append(measured_table(columns, str(path), first_line))
    facts = facts or _known_gpu(device_of_tables(found))
    rows = sum(len(one.table.lanes) for one in found)
    source = f"fitted by `capstan calibrate` to {rows} rows of {len(found)} tables of the user"
    with _progress(f"fitting {facts.name}") as progress:
        profile = _fit(found, facts, source, (), progress)
    _finish(profile, output, rows, json_output)


def _fit(
    found: Sequence[MeasuredTable],
    facts: DeviceFacts,
    source: str,
    kernels: Sequence[KernelRow],
    progress: Progress,
) -> DeviceProfile:
    from capstan.console import warn
    from planner.cost.calibration import calibrate
    from planner.cost.measured_tables import check_tables

    for warning in check_tables(found, facts):
        warn(warning)
    return calibrate(
        found, facts, source, "measured by the user", kernels, lambda done, of, what: progress(done / of, what)
    )


def _finish(profile: DeviceProfile, output: Path | None, rows: int, json_output: bool) -> None:
    """Write, then say what the fit is worth."""
    from capstan.commands.machine import profile_path
    from capstan.console import out, print_json, table
    from planner.cost.calibration import operators_of

    target = output if output is not None else profile_path(profile.device)
    profile.write(target)
    if json_output:
        print_json(profile.model_dump(mode="json"))
        return
    operators = operators_of(profile)
    numbers = ("rows", "held out", "median", "p90")
    made = table("relative error on rows held out of the fit", ("family", "lane", *numbers), right=numbers)
    for family, lanes in operators.lanes.items() if operators is not None else ():
        for number, (name, lane) in enumerate(lanes.items()):
            error = lane.held_out
            cells = ("0", "-", "-") if error is None else (str(error.rows), f"{error.p50:.1%}", f"{error.p90:.1%}")
            made.add_row("" if number else family, name, str(lane.rows), *cells)
    out().print(made)
    print(f"\nwrote {target}: {rows} rows of {profile.device}")
    print(f"next: capstan estimate --operators TABLE --profile {target} -o predicted.csv")
    print(f"      capstan plan SPEC --profile {target}")


def _gpu(
    device: str,
    output: Path | None,
    measurements: Path | None,
    json_output: bool,
    tables: Path | None,
    l2: str,
    seconds: float,
) -> None:
    from planner.cost.measured_tables import measured_table
    from runtime.calibrate_gpu import csv_text, find_gpu, kernel_tables, measure_gpu
    from runtime.calibrate_gpu_timer import CudaTimer, clocks_at_work
    from specs.document import write_atomically

    gpu = find_gpu()
    facts = _gpu_facts(gpu, device)
    state = "cold" if l2 == "cold" else "warm"
    with _progress(f"measuring {gpu.name}") as progress:
        timer = CudaTimer(state, gpu.l2_bytes)
        seen, points = measure_gpu(gpu, facts.name, timer, seconds, progress, clocks_at_work)
    columns = kernel_tables(points, gpu.name, state)
    if measurements is not None:
        seen.write(measurements)
    if tables is not None:  # before they are checked: what was measured is worth looking at where it is refused
        for family, made in columns.items():
            write_atomically(tables / f"{family}_perf.csv", csv_text(made))
    found = [measured_table(made, f"the measured {family} table") for family, made in columns.items()]
    source = f"measured on {gpu.name} (torch {seen.environment.versions['torch']}) by `capstan calibrate`"
    with _progress(f"fitting {facts.name}") as progress:
        profile = _fit(found, facts, source, seen.kernels, progress)
    for note in seen.notes:
        _say(f"note: {note}")
    _finish(profile, output, len(points), json_output)


def _gpu_facts(gpu: Gpu, device: str) -> DeviceFacts:
    """The catalogue's entry of the GPU that is here; a name that was asked for must be it."""
    from specs.catalog import load_device

    if device in HERE:
        return _known_gpu(gpu.name)
    asked = _known_gpu(device)
    try:
        here = load_device(gpu.name)
    except InputError:
        return asked  # the catalogue does not know the driver's name for it; the user does
    if here.name != asked.name:
        raise InputError(
            f"the GPU here is {gpu.name}, not {asked.name}",
            field="--device",
            expected=f"{here.name}, or --from with tables of {asked.name}",
        )
    return asked


def _cpu(output: Path | None, measurements: Path | None, json_output: bool) -> None:
    """Measure for about ten seconds, fit, write the profile that plans for `cpu` are made with."""
    import specs
    from capstan.commands.machine import CPU, profile_path, this_machine
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


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """A bar with the current part on stderr, where that is a terminal; nothing elsewhere."""
    from capstan.console import err

    console = err()
    if not console.is_terminal:
        yield lambda share, what: None
        return
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[what]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(escape(title), total=1.0, what="")
        yield lambda share, what: bar.update(task, completed=share, what=escape(what))
