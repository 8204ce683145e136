"""Whole-process time and memory of the commands that people wait for, beside their targets.

    python -m benchmarks.command_speed -o benchmarks/results/cpu/command_speed.json

Each command runs `--runs` times in a process of its own, alternating with the others, so that a noisy machine is noisy
for all. Wall seconds depend on the machine's other work; CPU seconds less so. Memory is the peak resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "specs" / "examples"
CAPSTAN = [sys.executable, "-m", "capstan.cli"]


def cases(folder: Path) -> dict[str, tuple[list[str], dict[str, float]]]:
    """Name -> (command, targets: wall_s and rss_mb where one is stated)."""
    plan = str(folder / "plan.json")
    return {
        "capstan plan chat-70b": (
            [*CAPSTAN, "plan", str(EXAMPLES / "chat-70b.yaml"), "-o", plan],
            {"wall_s": 3.0, "rss_mb": 300.0},
        ),
        "import specs": ([sys.executable, "-c", "import specs"], {"wall_s": 0.3}),
        "capstan explain": ([*CAPSTAN, "explain", plan], {}),
        "capstan simulate": ([*CAPSTAN, "simulate", plan], {}),
        "capstan export vllm": ([*CAPSTAN, "export", plan, "--to", "vllm", "-o", str(folder / "deploy")], {}),
        "capstan validate chat-70b": ([*CAPSTAN, "validate", str(EXAMPLES / "chat-70b.yaml")], {}),
        "capstan up quickstart --smoke": (
            [*CAPSTAN, "up", str(EXAMPLES / "quickstart.yaml"), "--smoke"],
            {"wall_s": 60.0},
        ),
    }


def run(command: list[str], log: Path) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak resident megabytes of one process; raises if it fails."""
    started = time.perf_counter()
    with log.open("wb") as sink:
        child = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, sink.fileno(), 1), (os.POSIX_SPAWN_DUP2, sink.fileno(), 2)],
        )
        _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')}")
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "rss_mb": usage.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        todo = cases(folder)
        for _ in range(arguments.runs):
            for case, (command, _) in todo.items():
                rows.setdefault(case, []).append(run(command, folder / "log"))
        report = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "runs": arguments.runs,
            "cases": {
                case: {
                    **{
                        figure: {
                            "median": round(statistics.median(row[figure] for row in rows[case]), 3),
                            "most": round(max(row[figure] for row in rows[case]), 3),
                        }
                        for figure in ("wall_s", "cpu_s", "rss_mb")
                    },
                    "target": target,
                }
                for case, (_, target) in todo.items()
            },
        }
    print(f"{'case':34s} {'wall s':>8s} {'CPU s':>8s} {'MB':>6s}  target")
    for case, figures in report["cases"].items():  # type: ignore[attr-defined]
        target = ", ".join(f"{key} <= {value:g}" for key, value in figures["target"].items())
        print(
            f"{case:34s} {figures['wall_s']['median']:8.2f} {figures['cpu_s']['median']:8.2f} "
            f"{figures['rss_mb']['median']:6.0f}  {target}"
        )
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
