"""Predicted against measured serving points: fit the engines, leave groups out, write docs/accuracy-serving.md.

    python -m benchmarks.serving_accuracy DATA/serving/measured_aggregated.csv -o docs/accuracy-serving.md [--write]

Every (model, device, engine) group is also predicted by a fit, begun anew and run until it settles, of the other
groups' rows. `--write` first fits the engine profiles of the catalogue to all rows (`benchmarks.fit_engines`), then
puts the errors of steps and first tokens of groups left out into them (`step_error`, `first_token_error`): plans at a
stated confidence are made with them. Scatter plots go into the folder `accuracy` beside the page.

Takes some eleven minutes of CPU time, on two processors half of that; without `--write` the catalogue stays as it is.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.fit_engines import left_out, write_fits
from benchmarks.serving_errors import (
    Errors,
    LeftOut,
    coverage_of,
    error_table,
    errors_of,
    write_errors,
)
from benchmarks.serving_rows import Floats, Row, measured, read_rows, simulate
from benchmarks.serving_scatter import batch, write_plots
from specs.catalog import load_engine
from specs.document import write_atomically

FEW = 4  # requests in flight
LIMITS_S = (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1)  # on TPOT, where choices are judged

INTRODUCTION = """\
# Accuracy of predicted deployments

Written by `python -m benchmarks.serving_accuracy DATA/serving/measured_aggregated.csv -o docs/accuracy-serving.md`; do
not edit. |predicted / measured - 1| in percent, median / p90, of the aggregated serving points that NVIDIA
aiconfigurator-core 0.12.0 publishes (Apache-2.0; InferenceX runs and vendor sweeps). Predicted as `capstan estimate`
does: the closed loop of the benchmark's clients, simulated on the operator latencies of `docs/accuracy.md`.

- Catalogue: with the shipped engine profiles, which `benchmarks/fit_engines.py` fitted to these rows.
- Left out: each (model, device, engine) with engine parameters that the other groups alone give: the very same fit,
  begun at the priors and run until it settles, without the group's rows. This is what to expect of a model that nobody
  measured. What the rows of a group could still have taught: which parameters there are, their priors, and the clients
  and token budgets of the vendor sweeps, all chosen while looking at the whole table. Of vLLM only one such sweep is
  there (Qwen3-32B), of TensorRT-LLM one of a mixture (Qwen3-235B): their figures are in part what they were inferred
  from. Some hundreds of variants were compared by these very figures, so they are kinder than new rows would be.
- No parameter is named after a model, but two have rows of one group only: the host times of vLLM before 0.13
  (Qwen3-32B, 93 rows) and `kernels.scan` of SGLang (Qwen3.5). Without such a group nothing is left to fit them to: they
  fall back to the middle of their prior, and that was chosen with the group's rows in view. What it would be without:
  the table of single witnesses.
- Throughput: output tokens per second at the stated concurrency, from TTFT and TPOT on both sides.

Rows that stand several times with the same figures are counted once.
"""

WITNESSES = """\
## Single witnesses

Parameters that one group alone shows, left out with the prior that was chosen in view of it, and as if nobody knew.
"""

CONFIDENCE = """\
## What plans are made at

`limits: {confidence: 90%}` plans with two margins, each the 90 % quantile over models and devices left out; every
(model, device, engine) counts the same, whatever the number of its rows. Linear between these quantiles.

- Steps (`step_error` in the engine profiles), of measured / predicted TPOT: every step of a plan is that much longer,
  and with it everything that waits for steps: queues, capacity, cost.
- First tokens (`first_token_error`), of measured / predicted TTFT where steps are already that much longer: what
  clients in step, frontends, batch waiting and prompts launched kernel by kernel add. Nothing waits for it: TTFT, and
  the end of the answer with it, are reported that much later than simulated, and limits on them are held to that. It
  takes no capacity, which TTFT that is wrong for such reasons says nothing about. Below 1 it is taken as 1.
"""
PLOTS = """\
## Predicted against measured, left out

On the line a prediction is right, above it too slow.
"""
REMARKS = """\
## Where the error lives

- **Levels, not shapes.** Inside a group the predicted rows rise and fall as the measured ones do; whole groups are too
  slow or too fast by some ten per cent, in opposite directions, and no factor on kernels or host times that they share
  is behind it. A fit that takes every row at its word lets the largest group pull all others along: left out and
  settled, TPOT was 9.4 / 31.4 in such a fit, with 14.1 for 1 to 4 requests in flight. Here a group has an offset of its
  own that its prediction may not use.
- **TTFT is the clients' as much as the engine's.** The vendor sweeps publish neither their client nor their servers'
  token budget. Qwen3-32B on vLLM shows both: its first tokens come as late with 128 tokens of output as with 1,024,
  so that nobody meets others at random. Equal outputs, ten requests per client and a budget of one prompt beside a
  token of every client explain them; with the engine's 8,192 tokens equal clients would be predicted twice too slow.
  Pauses between requests make it worse. Fits of nearly the same worth differ by three points in the median of TTFT.
- **Prompts are launched kernel by kernel.** On TensorRT-LLM a mixture's first token takes 170 to 250 ms whatever the
  length of its prompt: a step with prompts runs without a captured graph, and the host needs 0.07 ms for each of some
  1,600 kernels (`eager_launch_s`, one figure for all models). SGLang since 0.5.9 has 230 to 360 ms, hardly more for
  models of more kernels: `prefill_step_s` and `request_overhead_s` share it, which of the two is not known, and the
  narrow prior of the former decides.
- **Two witnesses that disagree.** On the same runs of Qwen3-235B, TPOT says that prompts of 128 tokens hold up nobody:
  all clients are in step and their prompts run together. TTFT says that hardly any prompt waits for another. Outputs
  that differ by half a per cent and at least 3,072 tokens a step are between the two. The clients of other mixtures
  would have TTFT of this engine better (13 %) and TPOT worse (10 / 27), left out. A first token that is late without
  holding up the others explains TPOT as well, and TTFT worse.
- **Choosing a layout.** More than half of the regret are two mixtures on TensorRT-LLM, Qwen3-235B (a third) and gpt-oss
  (a fifth). Qwen3-235B is predicted too slow, so that few devices seem to miss a limit. Of gpt-oss one device decodes
  faster and eight slower than on vLLM, as no cost that is common to both of this engine's releases says.
- **One seat fewer.** The TTFT of Llama-3.1-8B on TensorRT-LLM 1.0 grows with the output length, as if one client in N
  always waited for a seat. `idle_seats: 1` for dense models reproduces it; why a mixture of the same version does not
  show it is not known.
- **Batch waiting of TensorRT-LLM.** DeepSeek-V3 with prompts of 1,024 takes about twenty steps longer to the first
  token (`batch_wait_timeout_iters`). The columns do not say where it was on: not modelled, TTFT too low there.
- **Steps of DeepSeek-V3 on TensorRT-LLM** take 2.5 to 5 ms more than its kernels, six times what gpt-oss does there.
- **MiniMax-M2.5 on vLLM 0.16** takes 4.5 ms a step more than its kernels whatever the batch, on 0.18 under one.
- **Prompts of gpt-oss on vLLM** with 8,192 tokens take half as long again as predicted, those with 1,024 as predicted.
- **Full KV caches.** A few rows queue for memory: TTFT is then a multiple of the residence time and decided by a few
  per cent of the capacity, which the columns (memory fraction, dtype of the cache) do not state.
- **Frontends.** Above some 10,000 output tokens per second the measured servers are bound by their own streaming;
  `stream_token_s` holds a constant cost per token, measured costs grow with the length of the answer.
- **Rows of another kind.** Prompts of 4,000 and outputs of 1,000 tokens on TensorRT-LLM and vLLM: TPOT near 50 ms
  whatever the concurrency, or half of what any other row of the model shows.

## What was tried

Terms that physics suggests, each given to the fits and judged on groups left out (linearised around the fit), had
values that differ in sign from engine to engine and made predictions worse or left them: a gap between the kernels of
captured steps, a latency for each collective, a cost of each layer or each layer with experts, factors of their own for
products, collectives and norms in prompts and for experts of few or of middling tokens, host time of each kernel or
layer in steps with prompts of every engine, first tokens held back for some steps (stream intervals). What helped is
restraint: offsets of groups, and priors on kernels twice as narrow. The offsets' widths were chosen by fits that leave
out two groups at a time (TPOT 8.4 / 22.9 so judged), those of the priors by leaving out one; between half and twice
these widths the errors hardly differ. TTFT of SGLang is the exception: with the width of all host times (0.7) for its
`prefill_step_s` one group (Qwen3.5) pulls that from 0.05 to 0.12 s. Ten narrower priors on it and on
`request_overhead_s` were compared; of those that were settled, 0.35 on both has TTFT 22.0 and TPOT 10.2, 0.2 on
`prefill_step_s` alone, which is kept, 20.1 and 10.0; the width of 0.7 had 27.8 and 10.2.

What would remove more of it: the clients' scripts and servers' flags of the vendor sweeps, one model measured on two
engines with the same layouts, kernel tables of TensorRT-LLM and SGLang.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="fit the catalogue's engine profiles, with their errors")
    arguments = parser.parse_args()
    rows, refused = read_rows(arguments.table)
    if arguments.write:
        write_fits(rows)
    without = LeftOut(rows, left_out(rows))
    errors = errors_of(without)
    if arguments.write:
        write_errors(errors)
    pictures = write_plots(arguments.output.parent, rows, without.seconds())
    write_atomically(arguments.output, page(refused, without, errors, pictures))


def catalogue_seconds(rows: Sequence[Row]) -> Floats:
    """(rows, 2) seconds by the catalogue's engine profiles."""
    seconds = np.full((len(rows), 2), np.nan)
    for name in {row.deployment.engine for row in rows}:
        own = np.array([row.deployment.engine == name for row in rows])
        seconds[own] = simulate([row for row in rows if row.deployment.engine == name], load_engine(name))
    return seconds


def page(refused: Sequence[str], left_out: LeftOut, errors: Mapping[str, Errors], pictures: str) -> str:
    """The whole page. `refused`: why rows cannot be read; `pictures`: links to the plots."""
    rows, without = left_out.rows, left_out.seconds()
    catalogue = catalogue_seconds(rows)
    missing = int(np.isnan(catalogue[:, 0]).sum())
    whole = sum(row.times for row in rows)
    coverages = {name: coverage_of(left_out.of(name), one) for name, one in errors.items() if one.rows}
    sections = [
        INTRODUCTION,
        f"{whole + len(refused)} rows, {len(rows)} different ones; {missing + len(refused)} cannot be predicted.\n",
        "Aims, of groups left out:\n\n" + _aims(rows, without),
        "## By engine\n\n" + _table("engine", rows, catalogue, without, lambda row: row.deployment.engine),
        "## By model, device and engine\n\n"
        + _table("model, device, engine", rows, catalogue, without, lambda row: ", ".join(row.group)),
        "## By requests in flight\n\n" + _table("concurrency", rows, catalogue, without, batch),
        "## Choosing a layout\n\n"
        + _regret_text("catalogue", rows, catalogue)
        + "\n"
        + _regret_text("left out", rows, without),
        f"{WITNESSES}\n{_witness_table(left_out)}",
        f"{CONFIDENCE}\n{error_table(errors, coverages)}",
        f"{PLOTS}\n{pictures}",
        REMARKS,
    ]
    return "\n".join(sections)


def _aims(rows: Sequence[Row], without: Floats) -> str:
    """What was aimed at of groups left out, and what is reached."""
    error = np.abs(without / measured(rows) - 1.0)
    work = np.abs(_throughput(rows, without) / _throughput(rows, measured(rows)) - 1.0)
    few = np.array([row.point.concurrency <= FEW for row in rows])
    engines = sorted({row.deployment.engine for row in rows})
    by_engine = [np.nanmedian(error[[row.deployment.engine == name for row in rows], 0]) for name in engines]
    known = float(np.mean(~np.isnan(error[:, 0])))
    lines = ["| | aim | reached |", "|---|---|---|"]
    for what, aim, shares in (
        ("rows predicted", ">= 99", [known]),
        ("TPOT, median / p90", "<= 8 / 25", [np.nanmedian(error[:, 1]), np.nanquantile(error[:, 1], 0.9)]),
        (
            f"TPOT, 1 to {FEW} in flight / more",
            "no worse",
            [np.nanmedian(error[few, 1]), np.nanmedian(error[~few, 1])],
        ),
        ("TTFT, median", "<= 15", [np.nanmedian(error[:, 0])]),
        (f"TTFT, median: {', '.join(engines)}", "<= 20 each", by_engine),
        ("throughput, median", "<= 8", [np.nanmedian(work)]),
        ("extra cost of chosen layouts", "<= 3", [float(np.mean(regret(rows, without)[0]))]),
    ):
        lines.append(f"| {what} | {aim} | {' / '.join(f'{100 * share:.1f}' for share in shares)} |")
    return "\n".join(lines) + "\n"


def _witness_table(left_out: LeftOut) -> str:
    """What a group's predictions would be, had nobody known that there is something to know."""
    lines = ["| parameter | seen in | rows | TPOT | TPOT as if nobody knew |", "|---|---|---|---|---|"]
    for parameter, engine, model, changes in (
        ("host times before 0.13", "vllm", "Qwen/Qwen3-32B", {"releases": ()}),
        ("kernels.scan", "sglang", "Qwen/Qwen3.5-397B-A17B", {"kernels": {"scan": 1.0}}),
    ):
        for group, profile in left_out.profiles.items():
            if (group[0], group[2]) != (model, engine):
                continue
            own = [row for row in left_out.rows if row.group == group]
            kernels = profile.kernels.model_copy(update=changes.get("kernels", {}))
            ignorant = profile.model_copy(update={**changes, "kernels": kernels})
            texts = [_text(own, simulate(own, one), 1) for one in (profile, ignorant)]
            lines.append(f"| {parameter} | {', '.join(group)} | {len(own)} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


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
