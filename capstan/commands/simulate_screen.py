"""What a simulation tells, on the screen: a table of classes, of tenants, of replicas, and a sentence on all else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from capstan.console import count_text, facts, limit_text, out, seconds_text, table

if TYPE_CHECKING:
    from rich.table import Table

    from specs.deployment import SLO

SHOWN = ("p50", "p90", "p95", "p99")
METRICS = (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "E2E"))
NARROW = 0.001  # half-widths below this share of a percentile are not written out
_BARS = "▁▂▃▄▅▆▇█"

Summary = Mapping[str, Any]


def print_summary(summary: Summary, slos: Mapping[str, SLO | None]) -> None:
    """Everything but the cost of planning; rows on what did not happen are left out."""
    console = out()
    tables = [_classes(summary, slos)]
    tenants = [entry["tenant"] for entry in summary["tenants"]]
    if len(tenants) > 1 and tenants != [entry["class"] for entry in summary["classes"]]:
        tables.append(_tenants(summary))
    if summary["groups"]:
        tables.append(_groups(summary))
    for shown in tables:
        console.print(shown)
        console.print()
    console.print(facts(list(_facts(summary))))
    console.print()
    verdict = summary["verdict"]
    console.print(verdict["text"], style="green" if verdict["holds"] else "red", markup=False)
    console.print(
        f"{count_text(summary['simulated_requests'], 'request')}, {summary['simulated_s']:.0f} s simulated "
        f"in {summary['cpu_s']:.2f} CPU s, {summary['command_cpu_s']:.2f} with traffic and tables"
    )


def _classes(summary: Summary, slos: Mapping[str, SLO | None]) -> Table:
    classes = table("what happens (simulated)", ("class", "metric", *SHOWN, "limit"), right=SHOWN)
    classes.columns[0].no_wrap = True
    for entry in summary["classes"]:
        slo = slos.get(entry["class"])
        first = (entry["class"], count_text(entry["requests"], "request"), "")
        for label, (metric, name) in zip(first, METRICS, strict=True):
            times = (seconds_text(entry[f"{metric}_s"].get(rank)) for rank in SHOWN)
            classes.add_row(label, name, *times, limits_of(slo, metric))
            if any(widths := _half_widths(entry, metric)):
                classes.add_row("", "", *widths, "")
        met = entry.get("attainment")
        if met:
            classes.add_row("", "all met", f"{met['share']:.2%}", "", "", "", "")
        if entry["rejected"]:
            classes.add_row("", "refused", f"{entry['rejected']:,}", "", "", "", "")
        classes.add_section()
    return classes


def _tenants(summary: Summary) -> Table:
    headings = ("tenant", "requests", "TTFT p50", "p99", "TPOT p99", "E2E p99", "output tok/s", "all met", "goodput")
    tenants = table("tenants", headings, right=headings[1:])
    for entry in summary["tenants"]:
        met = entry.get("attainment")
        tenants.add_row(
            entry["tenant"],
            f"{entry['requests']:,}",
            seconds_text(entry["ttft_s"].get("p50")),
            seconds_text(entry["ttft_s"].get("p99")),
            seconds_text(entry["tpot_s"].get("p99")),
            seconds_text(entry["e2e_s"].get("p99")),
            f"{entry['output_tokens_per_s']:,.0f}",
            f"{met['share']:.2%}" if met else "-",
            f"{entry['goodput_per_s']:.3g}/s" if met else "-",
        )
    return tenants


def _groups(summary: Summary) -> Table:
    headings = (
        "group",
        "busy",
        "running",
        "KV mean",
        "KV peak",
        "preempted",
        "prompt tok/s",
        "output tok/s",
    )
    groups = table("replicas", headings, right=headings[1:])
    groups.columns[0].no_wrap = True
    means = {entry["group"]: entry["mean"] for entry in summary["kv"]}
    for entry in summary["groups"]:
        name = entry["group"]
        groups.add_row(
            f"{name} x {len(entry['utilisation'])}",
            _spread(entry["utilisation"]),
            str(entry["running_peak"]),
            f"~{means[name]:.0%}" if name in means else "-",
            f"{entry['kv_occupancy_peak']:.0%}",
            f"{entry['preemptions']:,}",
            f"{entry['prompt_tokens_per_s']:,.0f}",
            f"{entry['output_tokens_per_s']:,.0f}",
        )
    return groups


def _spread(shares: list[float]) -> str:
    """One share, or the least and the largest of several."""
    if len(shares) == 1 or f"{min(shares):.0%}" == f"{max(shares):.0%}":
        return f"{max(shares):.0%}"
    return f"{100 * min(shares):.0f} to {max(shares):.0%}"


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    """Label and sentence; only of what there is."""
    promised = [entry for entry in summary["classes"] if "goodput_per_s" in entry]
    if promised:
        rates = ", ".join(f"{entry['class']} {entry['goodput_per_s']:.3g}/s" for entry in promised)
        yield "goodput", f"{rates} within all limits"
    loop = summary["closed_loop"]
    if loop is not None:
        yield (
            "closed loop",
            f"{count_text(loop['concurrency'], 'client')}: {loop['requests_per_s']:.3g} requests/s, "
            f"{loop['output_tokens_per_s']:,.0f} output tokens/s",
        )
    queue = summary["queue"]
    if queue["waiting_peak"]:
        yield "queue", f"{bars(queue['waiting'])}  at most {queue['waiting_peak']:,} wait for a first token at once"
    for entry in summary["groups"]:
        if entry["imbalance"] is not None and len(entry["tokens_by_replica"]) > 1:
            yield "balance", f"{entry['group']}: the busiest replica serves {entry['imbalance']:.2f} x the mean tokens"
    for entry in summary["groups"]:
        yield from _group_facts(entry)
    for entry in summary["links"]:
        yield (
            "link",
            f"{entry['link']}: {count_text(entry['transfers'], 'transfer')}, {entry['moved_bytes'] / 1e9:,.1f} GB in "
            f"all, busy {entry['utilisation']:.1%}",
        )
    if summary["refused"]:
        yield "refused", ", ".join(f"{count:,} {reason}" for reason, count in summary["refused"].items())
    sessions = summary["sessions"]
    if sessions is not None:
        times = ", ".join(f"{rank} {seconds_text(sessions['seconds'].get(rank))}" for rank in SHOWN)
        unfinished = f"; {sessions['unfinished']:,} never end" if sessions["unfinished"] else ""
        yield (
            "sessions",
            f"{sessions['sessions']:,} of {sessions['turns_mean']:.1f} turns, from first arrival to last token: "
            f"{times}{unfinished}",
        )
    yield from _fairness(summary["fairness"])
    yield from _energy(summary["energy"])
    warm_up_s = summary["warm_up_s"]
    if warm_up_s is None and summary["simulated_requests"] >= 20:
        yield "warm-up", "by its TTFT (MSER-5) no part that begins in the first half is steady; percentiles are of all"
    elif warm_up_s is not None and warm_up_s > 0.01 * summary["window_s"]:
        yield "warm-up", f"TTFT is steady from {seconds_text(warm_up_s)} on; the percentiles hold the time before too"
    yield "verdict", summary["verdict"]["stability"]
    for note in summary["notes"]:
        yield "note", note


def _group_facts(entry: Summary) -> Iterator[tuple[str, str]]:
    name = entry["group"]
    if entry["prefix_hit_tokens"]:
        yield (
            "prefix cache",
            f"{name}: {entry['prefix_hit_rate']:.1%} of prompt tokens found, {entry['prefix_hit_tokens']:,} in all",
        )
    if entry["preemptions"]:
        swapped = entry["preemptions_by_swap"]
        yield (
            "preempted",
            f"{name}: {entry['preemptions'] - swapped:,} times by recompute, {swapped:,} times by swap",
        )
    if entry["moved_tokens"]:
        yield "moved", f"{name}: {entry['moved_tokens']:,} tokens between device and host"
    if entry["lost_to_failures"]:
        yield "failures", f"{name}: {count_text(entry['lost_to_failures'], 'request')} lost and served anew"


def _fairness(found: Summary | None) -> Iterator[tuple[str, str]]:
    if found is None or len(found["backlogged"]) < 2:
        return
    rates = sorted(found["backlogged"], key=lambda entry: entry["service_per_s"])
    ratio = found["max_over_min"]
    most, least = rates[-1]["tenant"], rates[0]["tenant"]
    if ratio is None:
        yield "fairness", f"{least} was served nothing while it waited"
    else:
        yield "fairness", f"while they waited, {most} was served {ratio:.2f} times as fast as {least}"
    if found["jain"] is not None:
        yield "", f"Jain's index {found['jain']:.3f} over the {len(rates)} tenants that waited (1: equal service)"


def _energy(energy: Summary | None) -> Iterator[tuple[str, str]]:
    if energy is None:
        return
    text = f"{_watts(energy['power_w'])} (predicted, devices only), {_watts(energy['joules'] / 3600)}h"
    if energy["joules_per_output_token"] is not None:
        text += f"; {energy['joules_per_output_token']:.2g} J per output token"
    if energy["grams_co2"] is not None:
        text += f"; {energy['grams_co2']:,.0f} g CO2"
    yield "energy", text
    if len(energy["groups"]) > 1:
        yield "", ", ".join(f"{entry['group']} {_watts(entry['power_w'])}" for entry in energy["groups"])
    for note in energy["notes"]:
        if "borrowed" in note:
            yield "", note


def _watts(power_w: float) -> str:
    return f"{power_w:.3g} W" if power_w < 999.5 else f"{power_w / 1000:,.2f} kW"


def bars(values: list[int], width: int = 30) -> str:
    """Values over time as a line of bars, the largest of each piece."""
    size = -(-len(values) // width)
    pieces = [max(values[start : start + size]) for start in range(0, len(values), size)]
    highest = max(pieces) or 1
    return "".join(_BARS[-(-value * (len(_BARS) - 1) // highest)] for value in pieces)


def _half_widths(entry: Summary, metric: str) -> list[str]:
    """Half of each percentile's 95 % interval, where it has one."""
    intervals = (entry[f"{metric}_interval_s"].get(rank) for rank in SHOWN)
    return ["" if found is None else _half_width(*found) for found in intervals]


def _half_width(low: float, high: float) -> str:
    half = (high - low) / 2
    return f"± {seconds_text(half)}" if half > NARROW * high else f"± <{NARROW:.1%}"


def limits_of(slo: SLO | None, metric: str) -> str:
    """The limits of one metric in words, a line each."""
    if slo is None:
        return ""
    found = [f"p{one.percentile:g} {limit_text(one.limit_s)}" for one in slo.percentiles if one.metric == metric]
    found += [limit_text(seconds) for name, seconds in slo.joint.items() if name == metric]
    return "\n".join(found)
