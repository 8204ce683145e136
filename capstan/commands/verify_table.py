"""Predicted beside measured, as a table."""

from __future__ import annotations

from typing import Any

from capstan.console import count_text, facts, out, seconds_text, table

SHOWN = ("p50", "p90", "p95", "p99")
METRICS = (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "end to end"))


def print_comparison(report: dict[str, Any]) -> None:
    """Per class and metric: predicted, measured, difference; then what was served, and what to know of it."""
    console = out()
    made = table("predicted (simulated) beside measured", ("class", "metric", "", *SHOWN, "limit"), right=SHOWN)
    for entry in report["classes"]:
        _class_rows(made, entry)
    console.print(made)
    console.print()
    console.print(facts(list(_facts(report))))
    if report["partial"]:
        console.print(f"partial: {report['partial']}", style="red", markup=False)


def _class_rows(made: Any, entry: dict[str, Any]) -> None:
    predicted, measured = entry["predicted"], entry["measured"]
    ended = _statuses(measured["status"])
    labels = [entry["class"], count_text(measured["requests"], "request"), *ended]
    lines = iter([*labels, *[""] * 20])
    for metric, name in METRICS:
        key = f"{metric}_s"
        for first, label, source in ((name, "predicted", predicted), ("", "measured", measured)):
            limit = entry["limits"][metric] if first else ""
            endless = "failed" if ended and source is measured else "-"
            times = (source[key].get(rank) for rank in SHOWN)
            shown = (endless if one is None and source[key] else seconds_text(one) for one in times)
            made.add_row(next(lines), first, label, *shown, limit)
        shares = (entry["difference"][key].get(rank) for rank in SHOWN)
        made.add_row(next(lines), "", "difference", *("-" if share is None else f"{share:+.0%}" for share in shares))
    if "attainment" in predicted and "attainment" in measured:
        for first, label, source in (("all limits", "predicted", predicted), ("", "measured", measured)):
            met = source["attainment"]
            text = f"{met['share']:.2%} ({met['low']:.1%} to {met['high']:.1%})"
            made.add_row(next(lines), first, label, text, f"{source['goodput_per_s']:.3g}/s", "", "", "")
    made.add_section()


def _statuses(status: dict[str, int]) -> list[str]:
    return [f"{count} {name}" for name, count in status.items() if count and name != "ok"]


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    endpoint = report["endpoint"]
    found = []
    if endpoint is not None:
        version = f" {endpoint['version']}" if endpoint["version"] else ""
        software = f", {endpoint['server']}{version}" if endpoint["server"] else version
        found.append(("server", f"{endpoint['url']}: {endpoint['model']}{software}"))
        found.append(("asked", f"/v1/{endpoint['api'].replace('chat', 'chat/completions')}, {endpoint['prompts']}"))
    else:
        found.append(("measured by", report["url"]))
    found += [("" if index else "notes", note) for index, note in enumerate(report["notes"])]
    if report.get("measurements"):
        found.append(("wrote", report["measurements"]))
    return found
