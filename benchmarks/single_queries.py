"""Whole-process time of planning queries for one model, beside their target of 1.5 s.

    python -m benchmarks.single_queries -o benchmarks/results/cpu/single_queries.json

Each query is a spec of its own, planned by `capstan plan` in a process of its own, `--runs` times in turn. Wall seconds
depend on the machine's other work; CPU seconds less so. `import` is what the same process takes without planning.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_speed import run

CAPSTAN = [sys.executable, "-m", "capstan"]  # as the installed command starts
IMPORTS = "import capstan.__main__, capstan.cli, capstan.commands.plan, planner.plan, planner.simulate.native"
TARGET_S = 1.5
PRICES = {"h100-sxm": 2.9, "h200-sxm": 3.8}


@dataclass(frozen=True)
class Query:
    """One model at `rate` requests/s of about `prompt` and `output` tokens on up to `gpus` devices."""

    model: str
    device: str
    gpus: int
    rate: float
    prompt: int
    output: int
    ttft_s: float
    tpot_s: float
    objective: str = "minimise cost"

    @property
    def name(self) -> str:
        model = self.model.split("/")[1]
        return f"{model}, {self.gpus} {self.device}, {self.rate:g}/s of {self.prompt}+{self.output}, {self.objective}"

    def spec(self) -> str:
        """The spec as YAML: lognormal prompts with a tail of four times the mean, outputs likewise."""
        lines = [
            "models:",
            f"  chat: {{architecture: {self.model}, weights: [bf16, fp8], kv_cache: [bf16, fp8], max_context: 32Ki}}",
            "hardware:",
            "  pools:",
            f"    - {{name: pool, device: {self.device}, count: {self.gpus}, gpus_per_node: 8, "
            f"price: ${PRICES[self.device]}/h, rent: gpu}}",
            "traffic:",
            "  - name: requests",
            f"    arrivals: {self.rate}/s",
            f"    prompt_tokens: {{lognormal: {{mean: {self.prompt}, p99: {4 * self.prompt}}}}}",
            f"    output_tokens: {{lognormal: {{mean: {self.output}, p99: {4 * self.output}}}}}",
            f"    slo: {{ttft: {{p90: {self.ttft_s}s}}, tpot: {{p90: {self.tpot_s}s}}}}",
            f"objective: {self.objective}",
        ]
        return "\n".join(lines) + "\n"


DENSE, LARGE, MOE = "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-235B-A22B"
QUERIES = (
    Query(DENSE, "h100-sxm", 8, 4, 2000, 300, 1.0, 0.05),
    Query(DENSE, "h200-sxm", 16, 10, 4000, 500, 2.0, 0.03),
    Query(DENSE, "h200-sxm", 32, 30, 1000, 1000, 0.6, 0.03),
    Query(DENSE, "h100-sxm", 32, 20, 4000, 500, 1.0, 0.05, "minimise gpus"),
    Query(LARGE, "h100-sxm", 16, 5, 3000, 300, 1.0, 0.05),
    Query(LARGE, "h200-sxm", 8, 1, 4000, 500, 2.0, 0.05),
    Query(LARGE, "h200-sxm", 32, 25, 1500, 400, 1.0, 0.04),
    Query(LARGE, "h100-sxm", 32, 12, 4000, 500, 1.5, 0.05, "minimise gpus"),
    Query(MOE, "h100-sxm", 16, 4, 2000, 500, 1.5, 0.05),
    Query(MOE, "h200-sxm", 8, 1, 4000, 500, 2.0, 0.05),
    Query(MOE, "h200-sxm", 32, 8, 2000, 500, 1.0, 0.04),
    Query(MOE, "h100-sxm", 32, 4, 4000, 1000, 2.0, 0.06, "minimise gpus"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    answers = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec, plan, log = folder / "spec.yaml", folder / "plan.json", folder / "log"
        for _ in range(arguments.runs):
            rows.setdefault("import", []).append(run([sys.executable, "-c", IMPORTS], log))
            for query in QUERIES:
                spec.write_text(query.spec(), encoding="utf-8")
                rows.setdefault(query.name, []).append(run([*CAPSTAN, "plan", str(spec), "-o", str(plan)], log))
                certificate = json.loads(plan.read_text(encoding="utf-8"))["certificate"]
                answers[query.name] = {key: certificate[key] for key in ("value", "bound", "priced_gap", "simulations")}
    cases = {
        case: {
            **{
                figure: {
                    "median": round(statistics.median(row[figure] for row in runs), 3),
                    "most": round(max(row[figure] for row in runs), 3),
                }
                for figure in ("wall_s", "cpu_s", "rss_mb")
            },
            **answers.get(case, {}),
        }
        for case, runs in rows.items()
    }
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 2),
        "runs": arguments.runs,
        "target_wall_s": TARGET_S,
        "cases": cases,
    }
    print(f"{'query':78s} {'wall s':>7s} {'CPU s':>6s} {'value':>8s} {'runs':>5s}")
    for case, figures in cases.items():
        answer = f"{figures['value']:8.2f} {figures['simulations']:5d}" if "value" in figures else ""
        print(f"{case:78s} {figures['wall_s']['median']:7.2f} {figures['cpu_s']['median']:6.2f} {answer}")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
