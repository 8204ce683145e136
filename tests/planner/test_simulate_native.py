"""The compiled simulator against the oracle: bit for bit, on random fleets, limits, caches and arrivals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.simulate import FleetGroup, FleetResult, Workload, native, simulate_closed_loop, simulate_fleet
from planner.simulate.native import build
from planner.simulate.native.marshal import decode_rows
from planner.simulate.result import REFUSALS
from specs.plan import Route
from simulation_cases import decode_table, random_case, random_model, random_workload

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler")

WORKLOAD = Workload(("a",), np.zeros(1, np.int64), np.zeros(1), np.ones(1, np.int64), np.ones(1, np.int64))


def assert_equal(compiled: FleetResult, oracle: FleetResult, name: str) -> None:
    """Every field, with every bit."""
    for field in fields(FleetResult):
        left, right = getattr(compiled, field.name), getattr(oracle, field.name)
        if isinstance(right, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=f"{name}: {field.name}")
        else:
            assert left == right, f"{name}: {field.name}"


@needs_compiler
@pytest.mark.parametrize("part", range(8))
def test_compiled_equals_oracle(part: int) -> None:
    for seed in range(20 * part, 20 * (part + 1)):
        case = random_case(seed)
        assert native.unsupported(case.groups, case.workload, router=case.options["router"]) is None
        compiled = native.simulate(case.groups, case.routes, case.workload, **case.options)
        oracle = simulate_fleet(case.groups, case.routes, case.workload, exact=True, **case.options)
        assert_equal(compiled, oracle, f"seed {seed}")


@needs_compiler
def test_random_cases_exercise_every_rule() -> None:
    seen: Counter[str] = Counter()
    for seed in range(160):
        case = random_case(seed)
        result = native.simulate(case.groups, case.routes, case.workload, **case.options)
        for load in result.groups:
            for name in ("preemptions", "swaps", "hit_tokens", "moved_tokens", "lost"):
                seen[name] += getattr(load, name) > 0
        assert result.refusal is not None
        seen.update(REFUSALS[reason] for reason in set(result.refusal.tolist()))
        seen["bound"] += result.event_bound_hit
        seen["refuted"] += result.refuted_early is not None
        seen["handoff"] += any(link.transfers for link in result.links)
    rules = {"preemptions", "swaps", "hit_tokens", "moved_tokens", "lost", "bound", "refuted", "handoff", *REFUSALS}
    assert {rule for rule in rules if seen[rule] < 3} == set()


@needs_compiler
@pytest.mark.parametrize("seed", range(40))
def test_compiled_closed_loop_equals_oracle(seed: int) -> None:
    random = np.random.default_rng(seed)
    model = random_model(random)
    drawn = random_workload(random, model.limits.max_model_len)
    fits = model.can_serve(drawn.prompt_tokens, drawn.output_tokens)
    prompt, output = np.array([1, *drawn.prompt_tokens[fits]]), np.array([1, *drawn.output_tokens[fits]])
    clients, replicas, max_events = int(random.integers(1, 30)), int(random.integers(1, 4)), int(10 ** (1 + seed % 6))
    oracle = simulate_closed_loop(model, clients, prompt, output, replicas=replicas, exact=True, max_events=max_events)
    count = len(prompt)
    plain = Workload(("all",), np.zeros(count, np.int64), np.zeros(count), prompt, output, window_s=np.inf)
    served = native.simulate(
        (FleetGroup("all", replicas, model),),
        (Route(request_class="all", group="all", share=1.0),),
        plain,
        max_events=max_events,
        clients=clients,
    )
    np.testing.assert_array_equal(served.arrivals_s(plain), oracle.sent_s)
    np.testing.assert_array_equal(served.ttft_s, oracle.ttft_s)
    np.testing.assert_array_equal(served.e2e_s, oracle.e2e_s)
    np.testing.assert_array_equal(served.tpot_s, oracle.tpot_s)
    assert (served.events, served.event_bound_hit) == (oracle.events, oracle.event_bound_hit)


class TestBuild:
    """What a first user meets."""

    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        build.library.cache_clear()
        yield
        build.library.cache_clear()

    @pytest.mark.parametrize("command", ["no-such-compiler", "false"])
    def test_without_a_working_compiler_it_warns_once_and_python_steps(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, command: str
    ) -> None:
        monkeypatch.setenv("CC", command)
        monkeypatch.setenv("CAPSTAN_CACHE", str(tmp_path))
        assert native.library() is None
        assert native.unsupported((), WORKLOAD) == "there is no compiled simulator"
        (record,) = caplog.records
        assert record.getMessage().startswith("simulating in Python")
        assert not list(tmp_path.rglob("*.so"))

    def test_it_can_be_switched_off(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setenv("CAPSTAN_NATIVE", "0")
        assert native.library() is None
        assert not caplog.records

    @needs_compiler
    def test_it_is_compiled_once(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CAPSTAN_CACHE", str(tmp_path))
        assert native.library() is not None
        (built,) = (tmp_path / "native").iterdir()
        build.library.cache_clear()
        monkeypatch.setattr(build, "compile_to", None)
        assert native.library() is not None
        assert [built] == list((tmp_path / "native").iterdir())

    @needs_compiler
    def test_a_folder_that_cannot_be_written_is_no_obstacle(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("CAPSTAN_CACHE", str(tmp_path / "file"))
        assert native.library() is not None

    @needs_compiler
    def test_several_processes_may_compile_at_once(self, tmp_path: Path) -> None:
        program = "from planner.simulate import native; raise SystemExit(native.library() is None)"
        environment = {**os.environ, "CAPSTAN_CACHE": str(tmp_path)}
        runs = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(3)]
        assert [run.wait() for run in runs] == [0, 0, 0]
        assert len(list((tmp_path / "native").iterdir())) == 1

    @needs_compiler
    def test_other_sources_or_compilers_make_another_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiler = build.find_compiler()
        assert compiler is not None
        before = build.key(compiler)
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
        assert build.key(compiler) != before
