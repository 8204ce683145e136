"""Predicted against measured serving points: write docs/accuracy-serving.md.

    python -m benchmarks.serving_accuracy DATA/serving/measured_aggregated.csv -o docs/accuracy-serving.md [--write]

Scatter plots go into the folder `accuracy` beside the page. `--write` puts the errors of steps into the engine profiles
of the catalogue (`step_error`): plans at a stated confidence are made with them.

Takes minutes: every (model, device, engine) group is also predicted with parameters that its rows had no part in.
`--rounds 4` fits those until they settle, in four times as long; the figures at the top of the page are from it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.fit_engines import PARAMETERS, around, left_out, sample
from benchmarks.serving_errors import StepError, error_table, step_errors, write_step_errors
from benchmarks.serving_rows import Floats, Row, measured, read_rows, simulate
from benchmarks.serving_scatter import batch, write_plots
from specs.catalog import load_engine
from specs.document import write_atomically

LIMITS_S = (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1)  # on TPOT, where choices are judged

INTRODUCTION = """\
# Accuracy of predicted deployments

Written by `python -m benchmarks.serving_accuracy DATA/serving/measured_aggregated.csv -o docs/accuracy-serving.md`; do
not edit. |predicted / measured - 1| in percent, median / p90, of the aggregated serving points that NVIDIA
aiconfigurator-core 0.12.0 publishes (Apache-2.0; InferenceX runs and vendor sweeps). Predicted as `capstan estimate`
does: the closed loop of the benchmark's clients, simulated on the operator latencies of `docs/accuracy.md`.

**What to expect of a model that nobody measured.** "Left out" in the tables further down is one step of the fit away
from parameters that the group did have a part in, and one step is not all of the way. Here the fits without a group's
rows are continued until they settle (`--rounds 4`, some ten minutes), beside that one step:

| engine | fits | TPOT | TPOT, 1 to 4 in flight | TTFT | throughput | extra cost of chosen layouts |
|---|---|---|---|---|---|---|
| sglang | settled | 8.4 / 22.8 | 7.8 / 20.5 | 22.2 / 67.8 | 8.2 / 26.7 | 2.5 |
| sglang | one step | 8.2 / 22.4 | 7.8 / 20.2 | 22.4 / 67.5 | 8.1 / 26.4 | 2.5 |
| trtllm | settled | 14.4 / 34.3 | 26.2 / 45.8 | 17.6 / 62.5 | 13.7 / 26.1 | 8.7 |
| trtllm | one step | 10.0 / 24.3 | 13.4 / 19.9 | 15.9 / 59.6 | 9.6 / 21.2 | 6.6 |
| vllm | settled | 5.3 / 17.9 | 5.4 / 19.3 | 16.6 / 39.1 | 5.4 / 18.4 | 2.9 |
| vllm | one step | 4.8 / 17.3 | 4.6 / 19.3 | 16.2 / 37.1 | 4.9 / 18.2 | 2.9 |
| **all** | settled | 8.4 / 29.5 | 13.8 / 37.2 | 18.6 / 55.2 | 8.3 / 25.3 | 5.2 |
| **all** | one step | 7.3 / 21.5 | 10.5 / 19.8 | 17.6 / 51.3 | 7.3 / 21.2 | 4.4 |

The aims were TPOT 8 / 25, TTFT 15 (20 for each engine), throughput 8, few requests in flight no worse than many, and
layouts that cost 3 % more than the best. **Judged by settled fits, all of them are missed**; one step alone would meet
those of TPOT and throughput. Most of the difference is two mixtures on TensorRT-LLM: gpt-oss on H200 (TPOT 25.6 / 38.9,
one step 11.1 / 22.4) and Qwen3-235B (21.9 / 36.0, one step 16.9 / 29.3) pull the same factors in opposite directions.

- Catalogue: with the shipped engine profiles, which `benchmarks/fit_engines.py` fitted to these rows.
- Left out: each (model, device, engine) with engine parameters that the other groups alone give. What the rows of a
  group could still have taught: which parameters there are, and the clients and token budgets of the vendor sweeps,
  both chosen while looking at the whole table. Of vLLM only one such sweep is there (Qwen3-32B), of TensorRT-LLM one of
  a mixture (Qwen3-235B): their figures are in part what they were inferred from. Some two hundred variants of the rules
  were compared by these very figures, so they are kinder than new rows would be.
- No parameter is named after a model, but two have rows of one group only: the host times of vLLM before 0.13
  (Qwen3-32B, 93 rows) and `kernels.scan` of SGLang (Qwen3.5). Without such a group nothing is left to fit them to: they
  fall back to the middle of their prior, and that was chosen with the group's rows in view. Were vLLM's newer host
  times all that is known, Qwen3-32B would have a TPOT error of 8.6 / 16.5, not 2.6 / 5.2, vLLM one of 8.0 / 17.7, and
  all rows together one of 8.7 / 21.7, not 7.3 / 21.5. A factor of 1, the scan as its operators predict it, would be no
  worse than the prior's 0.1: 8.1 / 27.2 left out, not 9.3 / 28.1.
- Throughput: output tokens per second at the stated concurrency, from TTFT and TPOT on both sides.

Rows that stand several times with the same figures are counted once.
"""

CONFIDENCE = """\
## What plans are made at

`limits: {confidence: 90%}` makes every step of a plan longer by measured / predicted TPOT at that quantile: 90 % of the
rows, of models and devices left out, took at most so many times what was predicted. Every (model, device, engine)
counts the same, whatever the number of its rows. Linear between these quantiles (`step_error` in the engine profiles).

With the quantile itself taken without the group that it is tried on, 90 % covers 87 % of a group's TPOT on SGLang, 80 %
on TensorRT-LLM and 88 % on vLLM (mean over groups; gpt-oss on H100: none). It is a margin on steps: TTFT, which clients
and queues decide, is within the same factor in 63, 73 and 65 % of a group's rows. Settled fits change the ratios by
less than 0.05.
"""
PLOTS = """\
## Predicted against measured, left out

On the line a prediction is right, above it too slow.
"""
REMARKS = """\
## Where the error lives

- **TTFT is the clients' as much as the engine's.** The vendor sweeps publish neither their client nor their servers'
  token budget. Qwen3-32B on vLLM shows both: its first tokens come as late with 128 tokens of output as with 1,024,
  so that nobody meets others at random. Equal outputs, ten requests per client and a budget of one prompt beside a
  token of every client explain them (TTFT 20 to 11 %, 5 % with an overhead of its own); with the engine's 8,192 tokens
  equal clients would be predicted twice too slow. Pauses between requests make it worse.
- **Prompts are launched kernel by kernel.** On TensorRT-LLM a mixture's first token takes 170 to 250 ms whatever the
  length of its prompt: a step with prompts runs without a captured graph, and the host needs 0.07 ms for each of some
  1,600 kernels (`eager_launch_s`, one figure for all models).
- **Two witnesses that disagree.** On the same runs of Qwen3-235B, TPOT says that prompts of 128 tokens hold up nobody:
  all clients are in step and their prompts run together. TTFT says that hardly any prompt waits for another. Outputs
  that differ by half a per cent and at least 3,072 tokens a step are between the two (TPOT p90 of the engine 32 to
  24 %, left out, TTFT 13 to 16 %). A first token that is late without holding up the others explains TPOT as well, and
  TTFT worse.
- **Choosing a layout.** Three fifths of the regret are two mixtures on TensorRT-LLM, Qwen3-235B (two fifths) and
  gpt-oss: their steps are predicted too long, so that under limits such as 30 and 40 ms few devices seem to miss the
  limit and more are chosen.
- **One seat fewer.** The TTFT of Llama-3.1-8B on TensorRT-LLM 1.0 grows with the output length, as if one client in N
  always waited for a seat. `idle_seats: 1` for dense models reproduces it; why a mixture of the same version does not
  show it is not known.
- **Batch waiting of TensorRT-LLM.** DeepSeek-V3 with prompts of 1,024 takes about twenty steps longer to the first
  token (`batch_wait_timeout_iters`). The columns do not say where it was on: not modelled, TTFT too low there.
- **Full KV caches.** A few rows queue for memory: TTFT is then a multiple of the residence time and decided by a few
  per cent of the capacity, which the columns (memory fraction, dtype of the cache) do not state.
- **Frontends.** Above some 10,000 output tokens per second the measured servers are bound by their own streaming;
  `stream_token_s` holds a constant cost per token, measured costs grow with the length of the answer.
- **Rows of another kind.** Prompts of 4,000 and outputs of 1,000 tokens on TensorRT-LLM and vLLM: TPOT near 50 ms
  whatever the concurrency, or half of what any other row of the model shows. A group counts for the root of its rows
  in the fit, or the five of gpt-oss on H100 alone would make every sequence of the engine cost 0.04 ms.
- **Experts at few tokens.** On TensorRT-LLM the experts of Qwen3-235B (H100) decode faster and those of DeepSeek-V3 and
  gpt-oss slower than one factor allows; left out, each is predicted with the factor of the others.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write step_error into the catalogue's engine profiles")
    parser.add_argument("--rounds", type=int, default=1, help="steps of every fit without a group; 4 settle it")
    arguments = parser.parse_args()
    rows, refused = read_rows(arguments.table)
    catalogue, without = predictions(rows, arguments.rounds)
    errors = step_errors(rows, without)
    if arguments.write:
        write_step_errors(errors)
    pictures = write_plots(arguments.output.parent, rows, without)
    write_atomically(arguments.output, page(rows, refused, catalogue, without, errors, pictures))


def predictions(rows: Sequence[Row], rounds: int = 1) -> tuple[Floats, Floats]:
    """(rows, 2) seconds, twice: by the catalogue's engine profiles, and by those that a row's group had no part in."""
    catalogue, without = np.full((len(rows), 2), np.nan), np.full((len(rows), 2), np.nan)
    for name in sorted({row.deployment.engine for row in rows}):
        own = np.array([row.deployment.engine == name for row in rows])
        of_engine = [row for row in rows if row.deployment.engine == name]
        base = load_engine(name)
        catalogue[own] = simulate(of_engine, base)
        if name in PARAMETERS:
            sampled = sample(of_engine)
            without[own] = left_out(base, of_engine, sampled, around(base, sampled), rounds)
        print(f"{name}: {own.sum()} rows", flush=True)
    return catalogue, without


def page(
    rows: Sequence[Row],
    refused: Sequence[str],
    catalogue: Floats,
    without: Floats,
    errors: Mapping[str, StepError],
    pictures: str,
) -> str:
    """The whole page. `catalogue` and `without` (left out): (rows, 2) seconds; `pictures`: links to the plots."""
    missing = int(np.isnan(catalogue[:, 0]).sum())
    whole = sum(row.times for row in rows)
    sections = [
        INTRODUCTION,
        f"{whole + len(refused)} rows, {len(rows)} different ones; {missing + len(refused)} cannot be predicted.\n",
        "## By engine\n\n" + _table("engine", rows, catalogue, without, lambda row: row.deployment.engine),
        "## By model, device and engine\n\n"
        + _table("model, device, engine", rows, catalogue, without, lambda row: ", ".join(row.group)),
        "## By requests in flight\n\n" + _table("concurrency", rows, catalogue, without, batch),
        "## Choosing a layout\n\n"
        + _regret_text("catalogue", rows, catalogue)
        + "\n"
        + _regret_text("left out", rows, without),
        f"{CONFIDENCE}\n{error_table(errors)}",
        f"{PLOTS}\n{pictures}",
        REMARKS,
    ]
    return "\n".join(sections)


def _table(what: str, rows: Sequence[Row], catalogue: Floats, without: Floats, key: Callable[[Row], str]) -> str:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[key(row)].append(index)
    lines = [
        f"| {what} | rows | TPOT | TPOT left out | TTFT | TTFT left out | throughput left out |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, members in [*sorted(groups.items()), ("**all**", list(range(len(rows))))]:
        chosen = [rows[index] for index in members]
        cells = [name.strip(), str(len(members))]
        for column in (1, 0):
            cells += [_text(chosen, seconds[members], column) for seconds in (catalogue, without)]
        cells.append(_quantiles(_throughput(chosen, without[members]) / _throughput(chosen, measured(chosen))))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _text(rows: Sequence[Row], seconds: Floats, column: int) -> str:
    return _quantiles(seconds[:, column] / measured(rows)[:, column])


def _quantiles(ratio: Floats) -> str:
    error = np.abs(ratio[~np.isnan(ratio)] - 1.0)
    return f"{100 * np.median(error):.1f} / {100 * np.quantile(error, 0.9):.1f}" if len(error) else "-"


def _throughput(rows: Sequence[Row], seconds: Floats) -> Floats:
    load = np.array([row.point.concurrency * row.point.osl for row in rows], np.float64)
    further = np.array([row.point.osl - 1 for row in rows], np.float64)
    result: Floats = load / (seconds[:, 0] + further * seconds[:, 1])
    return result


def _regret_text(what: str, rows: Sequence[Row], seconds: Floats) -> str:
    regrets, missed = regret(rows, seconds)
    first, last = 1e3 * LIMITS_S[0], 1e3 * LIMITS_S[-1]
    return (
        f"Within each (model, device, engine, prompt, output) with several measured layouts, under TPOT limits from "
        f"{first:g} to {last:g} ms:\nGPU time per token of the layout that predictions choose ({what}), against the "
        f"best measured one.\n{len(regrets)} choices cost {100 * np.mean(regrets):.1f} % more on average (p90 "
        f"{100 * np.quantile(regrets, 0.9):.1f} %); in {missed} further cases the\nchosen layout misses the limit at "
        "every measured concurrency.\n"
    )


def regret(rows: Sequence[Row], seconds: Floats) -> tuple[list[float], int]:
    """(relative extra cost of every choice, choices that miss the limit)."""
    cases: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if not np.isnan(seconds[index, 0]):
            cases[(*row.group, row.point.isl, row.point.osl)].append(index)
    regrets, missed = [], 0
    for members in cases.values():
        chosen = [rows[index] for index in members]
        layouts = [_layout(row) for row in chosen]
        if len(set(layouts)) < 2:
            continue
        gpus = np.array([row.deployment.devices for row in chosen])
        true, said = measured(chosen), seconds[members]
        cost, expected = gpus / _throughput(chosen, true), gpus / _throughput(chosen, said)
        for limit in LIMITS_S:
            best = _cheapest(layouts, cost, true[:, 1] <= limit)
            choice = _cheapest(layouts, expected, said[:, 1] <= limit)
            if not best or not choice:
                continue
            layout = min(choice, key=lambda one: choice[one])
            if layout in best:
                regrets.append(best[layout] / min(best.values()) - 1.0)
            else:
                missed += 1
    return regrets, missed


def _layout(row: Row) -> tuple[int, ...]:
    deployment = row.deployment
    return (
        deployment.tensor_parallel,
        deployment.pipeline_parallel,
        deployment.attention_data_parallel,
        deployment.expert_parallel,
    )


def _cheapest(layouts: Sequence[tuple[int, ...]], cost: Floats, allowed: np.ndarray) -> dict[tuple[int, ...], float]:
    """Least cost of every layout that some allowed point has."""
    found: dict[tuple[int, ...], float] = {}
    for layout, value, may in zip(layouts, cost.tolist(), allowed.tolist(), strict=True):
        if may:
            found[layout] = min(value, found.get(layout, value))
    return found


if __name__ == "__main__":
    main()
