"""Read the two constants of each expert all-to-all off one device's kernel table, and check them on another's.

    python -m benchmarks.check_all_to_all DATA_DIR

DATA_DIR holds DEVICE/comm/vllm/VERSION/moe_a2a_perf.parquet as published with NVIDIA aiconfigurator-core 0.12.0
(Apache-2.0): DeepEP on eight devices of one node, `num_tokens` of each rank, microseconds. Prints the efficiency and
the seconds per peer that fit best (least squares of relative errors), those that `planner.cost.transfer` has from
H100, and the relative errors of the latter on H100 and on H200, which no constant was read from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet

from planner.cost.roofline import Floats
from planner.cost.transfer import ALL_TO_ALL_KERNELS, AllToAllKernel, Phase, expert_all_to_all_s
from specs.catalog import load_device
from specs.profile import DeviceFacts

BACKENDS = {"low_latency": "deepep_ll", "high_throughput": "deepep_ht"}
BYTES_PER_ELEMENT = 2.0


def read_rows(path: Path, backend: str, phase: Phase) -> list[dict[str, float]]:
    rows = parquet.read_table(path).to_pylist()
    return [row for row in rows if row["comm_backend"] == backend and row["phase"] == phase]


def predicted_s(row: dict[str, float], device: DeviceFacts, phase: Phase, kernel: AllToAllKernel) -> float:
    ranks = int(row["ep_size"])
    tokens = row["num_tokens"] * ranks
    seconds = expert_all_to_all_s(
        tokens, int(row["topk"]), int(row["hidden_size"]), BYTES_PER_ELEMENT, ranks, device, phase, kernel=kernel
    )
    return float(seconds)


def best_constants(
    rows: list[dict[str, float]], device: DeviceFacts, phase: Phase, deduplicated: bool
) -> AllToAllKernel:
    """Seconds are linear in `peer_s` and in 1 / efficiency: two columns, each row weighted by 1 / measured."""
    measured = np.array([row["transmit_us"] for row in rows]) / 1e6
    unit = 0.1  # below what the link reaches, so that seconds are linear in 1 / efficiency
    wire = np.array([predicted_s(row, device, phase, AllToAllKernel(deduplicated, unit, 0.0)) for row in rows])
    peers = np.array([row["ep_size"] - 1 for row in rows])
    columns = np.stack([peers, wire], axis=1) / measured[:, None]
    peer_s, stretch = np.linalg.lstsq(columns, np.ones(len(rows)), rcond=None)[0]
    return AllToAllKernel(deduplicated, float(unit / stretch), float(peer_s))


def relative_errors(rows: list[dict[str, float]], device: DeviceFacts, phase: Phase, kernel: AllToAllKernel) -> Floats:
    predicted = np.array([predicted_s(row, device, phase, kernel) for row in rows])
    errors: Floats = np.abs(predicted / np.array([row["transmit_us"] / 1e6 for row in rows]) - 1.0)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with DEVICE/comm/vllm/VERSION/moe_a2a_perf.parquet")
    data = parser.parse_args().data
    for (name, phase), kernel in ALL_TO_ALL_KERNELS.items():
        for device_name, folder in (("h100-sxm", "h100_sxm"), ("h200-sxm", "h200_sxm")):
            (path,) = (data / folder).glob("comm/vllm/*/moe_a2a_perf.parquet")
            rows, device = read_rows(path, BACKENDS[name], phase), load_device(device_name)
            best = best_constants(rows, device, phase, kernel.deduplicated)
            median, tail = np.quantile(relative_errors(rows, device, phase, kernel), (0.5, 0.9))
            print(
                f"{name} {phase} {device_name}: {len(rows)} rows, best efficiency {best.efficiency:.2f} and "
                f"{best.peer_s * 1e6:.1f} us per peer; with {kernel.efficiency:.2f} and {kernel.peer_s * 1e6:.1f} us: "
                f"error {median:.0%} median, {tail:.0%} at p90"
            )


if __name__ == "__main__":
    main()
