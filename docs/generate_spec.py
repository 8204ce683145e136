"""Writes docs/spec.md: the introduction from here, the reference from the grammar that reads the files.

python docs/generate_spec.py            write the page
python docs/generate_spec.py --check    exit 1 where the committed page differs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specs.deployment.grammar import ByKind, Field, ListOf, Made, MapOf, OneOrMore, OrAuto, Record
from specs.deployment.written import DEPLOYMENT, MODEL_CHOICES, ChoicesShape
from specs.deployment.written_supply import HARDWARE, MODEL
from specs.deployment.written_traffic import CLASS, HISTOGRAM, LOGNORMAL, MEAN

PAGE = Path(__file__).parent / "spec.md"

# What can be written but is refused by name, by path of the field. tests/docs holds this against specs.deployment.
NOT_HONOURED: dict[str, str] = {}
PARTLY = {
    "traffic[].slo": "a class without one states a `throughput`, or is served as well as its work alone makes sure of",
    "traffic[].closed_loop": "planned where a `throughput` is stated beside it; `capstan simulate` serves any",
    "traffic[].window": "`capstan schedule` plans the day by it; `capstan plan` plans for all windows at once",
    "hardware.host.nvme": "weights of replicas that start in a schedule; refused where no traffic changes over time",
    "schedule": "refused where no traffic changes over time",
    "models.NAME.adapters": "for vllm, sglang and trtllm; costs are estimates, no published table measures them",
    "models.NAME.speculative": "for engines that speculate, in replicas without pipeline stages",
    "hardware.host.dram": "a host tier of the prefix cache: for vllm, plain attention, and prompts that begin alike",
    "traffic[].priority": "for vllm; other engines serve first come, first served",
    "traffic[].tenant": "planning does not tell tenants apart; `capstan simulate` reports them and may be fair to them",
    "hardware.network.bandwidth": "used for pipeline stages on several nodes",
    "hardware.network.latency": "used for pipeline stages on several nodes",
    "limits.utilisation": "the promises hold at 1 / this share of the traffic (85%: at 118 % of it)",
    "limits.confidence": (
        "steps, and first tokens beside them, are planned to take as many times what is predicted as that share of "
        "measured ones did at most; from 50% to the largest quantile known, 95%"
    ),
}
INTRODUCTION = """\
# The deployment spec, statement by statement

A spec says what must be served, on what, how well, and what to optimise. It is one YAML file. `capstan validate SPEC`
checks it and shows every default; `capstan schema deployment` prints a JSON schema for your editor; `capstan init`
writes a commented starter.

## A worked example

Ten chat requests per second on Qwen3-32B; whichever of two pools is cheaper; never above $30 an hour.

```yaml
name: support-chat

models:
  chat:
    architecture: Qwen/Qwen3-32B       # a name of `capstan catalog models`
    weights: [bf16, fp8]               # the planner may choose
    max_context: 8Ki                   # prompt and output together

hardware:
  pools:                               # what may be used, not what must be
    - {name: h100, device: h100-sxm, count: 8, price: $2.90/h}
    - {name: l40s, device: l40s, count: 16, gpus_per_node: 4, price: $1.10/h}

traffic:
  - name: conversation
    arrivals: 10/s                     # Poisson
    prompt_tokens: {lognormal: {mean: 900, p99: 4k}}
    output_tokens: {mean: 250, max: 1k}
    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}

objective: minimise cost
limits: {budget: $30/h}
```

Read it as: 90 % of the requests get their first token within a second, and for 90 % of them the mean time per further
token is at most 50 ms, in a simulation of ten minutes of that traffic.

## Quantities

A quantity carries its unit; a bare number where a unit is needed is an error. SI prefixes are decimal (`2k` = 2000),
`Ki`, `Mi` and `Gi` are binary. Durations: `50ms`, `1.5s`. Rates: `20/s`, `300/min`. Memory: `80GB`, `80GiB`. Bandwidth:
`400Gb/s` in bits, `50GB/s` in bytes. Prices: `$2.90/h`. Shares: `85%` or `0.85`. Power: `600W`.

## Service levels

A class states one of two kinds of limits, never both:

- percentiles: `{ttft: {p90: 1s, p99: 3s}, tpot: {p90: 50ms}}`; each holds by itself;
- joint: `{ttft: 600ms, e2e: 2s, attainment: 95%}`; that share of the requests meets all of them at once.

TTFT is the time to the first token, E2E the whole request, TPOT (E2E - TTFT) / (output tokens - 1); a request of one
token has no TPOT and meets any.

## Whether it is honoured

Everything below parses. What planning does not act on is refused by name, all of it in one message with exit code 2,
and is marked **refused** here. Nothing is ignored. The `choices` are pins: `tensor_parallel: 2` allows nothing else,
`[2, 4]` allows these two, `auto` (the default) leaves it to the planner. To judge what you already run, pin everything
(`specs/examples/existing-deployment.yaml`) or state it group by group (`specs/examples/uneven-fleet.yaml`):
`capstan estimate` says what it does.

# Reference

Generated from the grammar that reads the files (`python docs/generate_spec.py`).
"""
EXPLAINED = {
    "traffic[].trace": (
        "A plan is made for the ten minutes that hold the most tokens, longer where these are fewer than 1,000\n"
        "requests. Formats, plain or gzip; columns may stand in any order, and others are ignored:\n\n"
        "| format | columns |\n|---|---|\n"
        "| `csv` | `arrival_s`, `prompt_tokens`, `output_tokens`; if known, `tenant`, `priority` (high, normal, low), "
        "`session`, and `prefix` with `prefix_tokens`: rows that name the same prefix begin with the same tokens, as "
        "many as both of them state |\n"
        "| `azure` | `TIMESTAMP` (UTC), `ContextTokens`, `GeneratedTokens` |\n"
        "| `mooncake` | JSON lines: `timestamp` in ms, `input_length`, `output_length`; if known, `hash_ids`, one for "
        "every 512 prompt tokens and one for the rest: equal beginnings are equal prompts |\n"
        "| `burstgpt` | `Timestamp` in s, `Request tokens`, `Response tokens`; if known, `Session ID`. Requests that "
        "failed have no tokens: they are left out, and a note says how many |\n"
        "| `sharegpt` | `num_prefill_tokens`, `num_decode_tokens`; no times, so `rate` is needed |\n\n"
        "Rows stand in order of arrival, times are not negative, and every length is at least 1; anything else is an\n"
        "error with its line."
    ),
    "traffic[].arrivals": """\
A diurnal process is Poisson with a rate that follows one cosine a period: `rate` is the mean, `peak_to_mean` times that
the peak, and the trough lies as far below. A plan is made for the peak: the window lies around it. A window of a whole
period or longer (`capstan simulate --seconds`) begins where the period does, at midnight for 24 h.""",
    "traffic[].sessions": """\
A window finds conversations under way, as any moment of such traffic does. With `growing_context` the KV cache of a
prompt's beginning can be reused where prefix caching is on: token ids are known in units of 16 tokens, or longer ones
where there would be more than four million units. A conversation ends before the turn that would not fit
`max_context`.""",
    "traffic[].closed_loop": """\
As serving benchmarks load a server: all clients send at once at the start, and each sends its next request when its
last one has ended. The mean over all requests contains that burst, unless there is a warm-up. Where a `throughput`
is stated, plans are made for it.""",
    "traffic[].throughput": """\
A rate of work in place of latencies. Requests that come by themselves must offer that many tokens. A closed loop is
planned for as Poisson arrivals that offer just so many; by Little's law its clients bound how long requests may take on
average: clients / (requests/s). Replicas are priced by a closed loop that keeps them full, and a plan must finish 95 %
of the tokens that arrive while it is simulated (a window ends with some in flight).""",
    "schedule": """\
See [schedule.md](schedule.md). Without `switching.start` a replica starts by loading its weights, from each node's NVMe
where `hardware.host.nvme` is declared and else over the network port of each device, and takes a minute more.""",
    "choices.MODEL.groups[]": """\
Replicas that stand already: nothing of them is chosen, and `capstan estimate SPEC.yaml` says what they do
([estimate.md](estimate.md)). What a group leaves out is what the model's other choices pin, else what its engine does
by itself. A class goes by the shares that `serves` states; what they leave goes to groups that name the class without
a share, and to groups without `serves`, by the capacity that other requests leave them. Prefill groups hand over to a
decode group of their engine and type of KV cache; decode groups take nothing else.""",
    "traffic[].shared_prefix": """\
The shared tokens are part of `prompt_tokens`: a prompt of 1,200 of which 1,000 are shared has 200 of its own, and a
shorter one than these shares all of itself. The group is drawn by request, and by conversation where there are
sessions.""",
}
EXAMPLES = {
    "models.NAME": "models:\n  chat: {architecture: ./my-model/config.json, weights: fp8, kv_cache: [bf16, fp8]}",
    "hardware.pools[]": (
        "hardware:\n  pools:\n"
        "    - {name: h100, device: h100-sxm, count: 16, gpus_per_node: 8, price: $2.90/h, rent: node}"
    ),
    "traffic[].trace": (
        "traffic:\n  - name: recorded\n    trace: {file: requests.csv.gz, format: csv, rate: 20/s}\n"
        "    slo: {ttft: {p90: 1s}}"
    ),
    "traffic[].arrivals": (
        "traffic:\n  - name: bursty\n    arrivals: {rate: 15/s, process: gamma, cv: 2}\n"
        "    prompt_tokens: {lognormal: {mean: 2k, p99: 7k}}\n    output_tokens: {uniform: [10, 200]}\n"
        "    slo: {ttft: 600ms, e2e: 2s, attainment: 95%}"
    ),
    "traffic[].sessions": (
        "traffic:\n  - name: agents\n"
        "    sessions: {rate: 2/s, turns: {mean: 6}, think_time: {mean: 8s}, growing_context: true}\n"
        "    prompt_tokens: {mean: 300, max: 2k}      # new tokens of every turn\n    output_tokens: 200\n"
        "    slo: {ttft: {p95: 2s}}"
    ),
    "traffic[].shared_prefix": (
        "traffic:\n  - name: support\n    arrivals: {rate: 20/s, process: diurnal, peak_to_mean: 1.8, peak_at: 14h}\n"
        "    prompt_tokens: {lognormal: {mean: 2k, p99: 7k}}\n    output_tokens: {mean: 40, max: 256}\n"
        "    shared_prefix: {tokens: 1k, groups: 200, skew: 1}\n    slo: {ttft: {p90: 500ms}}"
    ),
    "traffic[].closed_loop": (
        "traffic:\n  - name: nightly\n    closed_loop: {concurrency: 256}\n    throughput: {at_least: 2000 tokens/s}\n"
        "    window: 01:00-05:00\n    prompt_tokens: 1000\n    output_tokens: 200"
    ),
    "schedule": (
        "traffic:\n  - name: visitors\n    arrivals: {rate: 20/s, process: diurnal, peak_to_mean: 1.8, peak_at: 14h}\n"
        "    prompt_tokens: 800\n    output_tokens: 200\n    slo: {ttft: {p90: 1s}}\n"
        "schedule: {slot: 2h, switching: {start: 3min, cost: $0.50}}"
    ),
    "limits": "limits: {budget: $30/h, utilisation: 85%, gpus: {chat: 24}}",
    "choices.MODEL.groups[]": (
        "choices:\n  chat:\n    groups:\n"
        "      - {name: old, pool: h100, replicas: 2, tensor_parallel: 2, engine_version: 0.12.0, max_num_seqs: 128}\n"
        "      - {name: new, pool: h100, replicas: 1, tensor_parallel: 4, engine: sglang, serves: {all: 60%}}"
    ),
    "choices": "choices:\n  engine: vllm\n  chat: {tensor_parallel: [2, 4], max_num_seqs: 256, pool: h100}",
}
LENGTHS = (
    ("TOKENS", "every request has so many tokens", "800"),
    (
        "{mean, max}",
        "geometric: the most random law with this mean (and, if stated, this maximum)",
        "{mean: 250, max: 1k}",
    ),
    (
        "{lognormal: {mean, p99}}",
        "lognormal with this mean; 1 % are longer than `p99`",
        "{lognormal: {mean: 2k, p99: 7k}}",
    ),
    ("{uniform: [low, high]}", "every length of the range is equally likely", "{uniform: [100, 1024]}"),
    ("{histogram: FILE}", "counts by length from a CSV file beside the spec", "{histogram: prompts.csv}"),
    (
        "{histogram: FILE, source: prometheus}",
        "the buckets of a server's request lengths (vLLM, SGLang): its metrics in a file, or their URL, which every "
        "command reads anew",
        "{histogram: metrics.txt, source: prometheus}",
    ),
)


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    parts += ["\n".join(section(path, record, intro)) for path, record, intro in sections()]
    return "\n".join(parts)


def sections() -> Iterator[tuple[str, Record | None, str]]:
    """(path, record, sentence) of every mapping of the file, in reading order."""
    yield "", DEPLOYMENT, ""
    yield from nested(
        "models.NAME", record_of(MODEL), "A name of your choice; the short form is the architecture alone."
    )
    yield from nested("hardware", record_of(HARDWARE), "")
    yield from nested("traffic[]", record_of(CLASS), "A class is a kind of request with promises of its own.")
    yield "lengths", None, ""
    yield from nested("limits", record_of(DEPLOYMENT.fields["limits"].shape), "")
    yield "choices", None, ""
    yield from nested("choices.MODEL", MODEL_CHOICES, "Under the model's own name.")
    yield from nested("schedule", record_of(DEPLOYMENT.fields["schedule"].shape), "Of a day whose traffic changes.")


def nested(path: str, record: Record | None, intro: str) -> Iterator[tuple[str, Record | None, str]]:
    if record is None:
        return
    yield path, record, intro
    for name, field in record.fields.items():
        many = "[]" if is_list(field.shape) else ""
        inner = record_of(field.shape)
        if inner is not None:
            yield from nested(f"{path}.{name}{many}", inner, "")


def is_list(shape: Any) -> bool:
    return isinstance(shape, ListOf)


def record_of(shape: Any) -> Record | None:
    """The mapping inside a shape, or None where it is a single value."""
    if isinstance(shape, Record):
        return shape
    if isinstance(shape, ByKind):
        return record_of(shape.full)
    if isinstance(shape, ListOf | OneOrMore):
        return record_of(shape.item)
    if isinstance(shape, Made | OrAuto):
        return record_of(shape.inner)
    if isinstance(shape, MapOf):
        return record_of(shape.value)
    return None


def section(path: str, record: Record | None, intro: str) -> Iterator[str]:
    yield f"## `{path}`" if path and path != "lengths" else ("## Lengths" if path else "## The file")
    yield ""
    if path == "lengths":
        yield from lengths()
        return
    if path in NOT_HONOURED:
        yield f"**Refused**: {NOT_HONOURED[path]}."
        yield ""
    if intro:
        yield intro
        yield ""
    if path in EXPLAINED:
        yield EXPLAINED[path]
        yield ""
    if path in EXAMPLES:
        yield f"```yaml\n{EXAMPLES[path]}\n```"
        yield ""
    fields = ChoicesShape.own if record is None else record.fields
    yield "| field | written as | meaning |"
    yield "|---|---|---|"
    for name, field in fields.items():
        yield row(f"{path}.{name}" if path else name, name, field)
    if record is None:
        yield "| *a model's name* | a mapping | choices of that model, below |"
    yield ""


def row(path: str, name: str, field: Field) -> str:
    meaning = field.doc
    if field.required:
        meaning += "; **required**"
    if path in NOT_HONOURED:
        meaning += f". **Refused**: {NOT_HONOURED[path]}"
    partly = PARTLY.get(path)
    if partly is not None:
        meaning += f". **Note**: {partly}"
    written = (
        "a mapping, below" if isinstance(field.shape, Record | ChoicesShape) else field.shape.says.replace("|", "\\|")
    )
    if isinstance(field.shape, ByKind) and isinstance(field.shape.full, Record):
        written = f"{field.shape.short.says}, or a mapping, below"
    if isinstance(field.shape, ListOf) and record_of(field.shape) is not None:
        written = "a list of mappings, below"
    return f"| `{name}` | {written} | {meaning} |"


def lengths() -> Iterator[str]:
    yield "`prompt_tokens` and `output_tokens` are a number or one distribution:"
    yield ""
    yield "| form | meaning | example |"
    yield "|---|---|---|"
    for form, meaning, example in LENGTHS:
        yield f"| `{form}` | {meaning} | `{example}` |"
    yield ""
    for title, record in (("mean", MEAN), ("lognormal", LOGNORMAL), ("histogram", HISTOGRAM)):
        fields = "; ".join(f"`{name}`: {field.doc}" for name, field in record.fields.items())
        yield f"- {title}: {fields}"
    yield ""
    yield (
        "A drawn length without a largest value is cut where the model's `max_context` ends: the output at half of it, "
        "the prompt at what the output leaves. Stated and recorded lengths are never cut; too long, they are an error."
    )
    yield ""


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
