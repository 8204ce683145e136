"""`capstan diff`: what differs between two plans."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from capstan.console import out, print_json, table
from capstan.input_files import read_plan


def run_diff(old: Path, new: Path, json_output: bool) -> None:
    """Print the differences; exit 0 whether there are any or not. `InputError` where a file is no plan."""
    from planner.diff import diff

    found = diff(read_plan(old, check_laws=False), read_plan(new, check_laws=False))
    if json_output:
        print_json([asdict(item) for item in found])
        return
    console = out()
    if not found:
        console.print("the plans say the same")
        return
    made = table("", ("topic", "what", str(old), str(new)))
    topic = about = ""
    for item in found:
        if item.topic != topic:
            made.add_section()
            about = ""
        subject, _, what = item.what.rpartition(": ")
        if subject != about:  # what several rows are about is said once, above them
            made.add_row("" if item.topic == topic else item.topic, subject)
            topic = item.topic
        indent = "  " if subject else ""
        made.add_row("" if item.topic == topic else item.topic, indent + what, _value(item.old), _value(item.new))
        topic, about = item.topic, subject
    console.print(made)


def _value(text: str | None) -> str:
    return "-" if text is None else text
