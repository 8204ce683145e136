"""Planning of whole fleets: many models, classes and devices at once, beside the targets of time, gap and memory.

    python -m benchmarks.fleet_planning -o benchmarks/results/cpu/fleet_planning.json
    python -m benchmarks.fleet_planning --write medium fleet.yaml    # only the spec

`others_busy` is the load average before a run: above 0.5, the wall time is not that of two free cores.

Each fleet is drawn from a seed: catalogue models of mixed size, each with classes of several kinds (chats, long
prompts, batch-like answers), drawn rates, lengths and limits, sized to fill about half of the devices.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.command_speed import run

CAPSTAN = [sys.executable, "-m", "capstan.cli"]
DEVICES = (("h100-sxm", 2.9), ("h200-sxm", 3.8), ("a100-sxm", 1.6), ("l40s", 1.1), ("b200", 5.5))
# Architecture, billions of parameters that a token meets, of all parameters.
MODELS = (
    ("Qwen/Qwen3-8B", 8.2, 8.2),
    ("meta-llama/Llama-3.1-8B", 8.0, 8.0),
    ("mistralai/Mistral-7B-v0.3", 7.2, 7.2),
    ("Qwen/Qwen3-32B", 32.8, 32.8),
    ("meta-llama/Llama-3.1-70B", 70.6, 70.6),
    ("Qwen/Qwen3-30B-A3B", 3.3, 30.5),
    ("openai/gpt-oss-120b", 5.1, 117.0),
    ("Qwen/Qwen2.5-72B-Instruct", 72.7, 72.7),
    ("Qwen/Qwen2.5-7B-Instruct", 7.6, 7.6),
    ("Qwen/Qwen3-1.7B", 1.7, 1.7),
)
# Mean prompt and output tokens (low, high), seconds to the first token, per further token (low, high).
KINDS = {
    "chat": ((300, 1500), (100, 400), (0.8, 2.0), (0.04, 0.08)),
    "long": ((3000, 8000), (100, 500), (3.0, 8.0), (0.06, 0.12)),
    "write": ((200, 800), (500, 1500), (2.0, 5.0), (0.05, 0.1)),
}
TOKENS_PER_S_OF_A_BILLION = 180_000.0  # roughly what a device computes for a model of 1e9 parameters within limits


@dataclass(frozen=True)
class Fleet:
    """`classes` request classes in all, over `models` models and `gpus` devices of five types in nodes of eight."""

    models: int
    classes: int
    gpus: int
    target: dict[str, float]  # wall_s, gap, rss_mb

    def spec(self, seed: int) -> str:
        """The spec as YAML."""
        draw = np.random.default_rng(seed)
        per_type = self.gpus // len(DEVICES) // 8 * 8
        chosen = [MODELS[index % len(MODELS)] for index in range(self.models)]
        lines = ["name: fleet", "models:"]
        lines += [
            f"  m{index:02}: {{architecture: {name}, weights: [bf16, fp8], max_context: 16Ki}}"
            for index, (name, _, _) in enumerate(chosen)
        ]
        lines += ["hardware:", "  pools:"]
        lines += [
            f"    - {{name: {device}, device: {device}, count: {per_type}, gpus_per_node: 8, price: ${price}/h, "
            "rent: node}"
            for device, price in DEVICES
        ]
        lines.append("traffic:")
        share = draw.dirichlet(np.full(self.models, 4.0)) * self.gpus * 0.4
        for position in range(self.classes):
            index = position % self.models
            per_model = self.classes // self.models + (index < self.classes % self.models)
            lines += self._traffic(position, index, chosen[index][1], share[index] / per_model, draw)
        return "\n".join([*lines, "objective: minimise cost"]) + "\n"

    def _traffic(
        self, position: int, index: int, billions: float, devices: float, draw: np.random.Generator
    ) -> list[str]:
        prompts, outputs, ttfts, tpots = KINDS[str(draw.choice(list(KINDS)))]
        prompt, output = (int(np.exp(draw.uniform(*np.log(span)))) for span in (prompts, outputs))
        ttft_s, tpot_s = (round(float(draw.uniform(*span)), 3) for span in (ttfts, tpots))
        rank = draw.choice(["p90", "p95"])
        tokens_per_s = devices * TOKENS_PER_S_OF_A_BILLION / max(3.0, billions)
        rate = max(0.05, float(draw.lognormal(0.0, 0.5)) * tokens_per_s / (prompt + 4 * output))
        return [
            f"  - name: c{position:04}",
            f"    model: m{index:02}",
            f"    arrivals: {rate:.3f}/s",
            f"    prompt_tokens: {{lognormal: {{mean: {prompt}, p99: {4 * prompt}}}}}",
            f"    output_tokens: {{lognormal: {{mean: {output}, p99: {4 * output}}}}}",
            f"    slo: {{ttft: {{{rank}: {ttft_s}s}}, tpot: {{{rank}: {tpot_s}s}}}}",
        ]


MEDIUM, LARGE = {"wall_s": 30.0, "gap": 0.01}, {"wall_s": 300.0, "gap": 0.03, "rss_mb": 4096.0}
FLEETS = {
    "medium, 20 classes in all": Fleet(10, 20, 1000, MEDIUM),
    "medium, 20 classes a model": Fleet(10, 200, 1000, MEDIUM),
    "large": Fleet(50, 1000, 10_000, LARGE),
}


def measured(fleet: Fleet, seed: int, folder: Path) -> dict[str, object]:
    """One planning run of a fleet in a process of its own."""
    spec, plan = folder / "fleet.yaml", folder / "plan.json"
    spec.write_text(fleet.spec(seed), encoding="utf-8")
    busy = os.getloadavg()[0]
    figures = run([*CAPSTAN, "plan", str(spec), "-o", str(plan)], folder / "log")
    found = json.loads(plan.read_text(encoding="utf-8"))
    certificate = found["certificate"]
    told = ("value", "bound", "gap", "priced_bound", "priced_gap", "solver_status", "columns", "simulations")
    return {
        **{name: round(value, 2) for name, value in figures.items()},
        "others_busy": round(busy, 1),
        **{name: certificate[name] for name in told},
        "gpus": found["cost"]["gpus"],
        "groups": len(found["groups"]),
        "requests": sum(item["requests"] for item in found["predictions"]["classes"]),
        "plan_mb": round(plan.stat().st_size / 1e6, 2),
        "target": fleet.target,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="fleets whose name contains this")
    parser.add_argument("--write", nargs=2, metavar=("FLEET", "FILE"), help="write the spec of the first such fleet")
    arguments = parser.parse_args()
    if arguments.write:
        name, file = arguments.write
        fleet = next(fleet for key, fleet in FLEETS.items() if name in key)
        Path(file).write_text(fleet.spec(arguments.seed), encoding="utf-8")
        return
    cases = {}
    for name, fleet in FLEETS.items():
        if arguments.only and arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = measured(fleet, arguments.seed, Path(folder))
        print(name, json.dumps(cases[name]))
    if arguments.output is not None:
        report = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "seed": arguments.seed,
            "cases": cases,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
