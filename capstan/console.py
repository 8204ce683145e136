"""What commands share at the terminal: rich consoles and tables, one JSON document on stdout, errors by exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from specs.errors import CapstanError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


PIPE_WIDTH = 120  # columns of tables where neither a terminal nor COLUMNS says how wide it is


def out() -> Console:
    """Tables and documents for people: stdout."""
    from rich.console import Console

    unknown = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=PIPE_WIDTH if unknown else None)


def err() -> Console:
    """Progress and warnings: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def warn(text: str) -> None:
    """One warning on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def table(title: str = "", headings: Sequence[str] = (), right: Sequence[str] = ()) -> Table:
    """An empty table in the one style; headings in `right` are right-aligned."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return made


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Label and sentence, one a row; sentences wrap under themselves. An empty label continues the one above."""
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True, style="bold")
    made.add_column()
    for label, text in rows:
        made.add_row(Text(label), Text(text))
    return made


def seconds_text(seconds: float | None) -> str:
    """A measured or simulated time in the unit that a person reads, three digits; `-` where there is none."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"


def limit_text(seconds: float) -> str:
    """A limit as the user may have written it: all its digits."""
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def count_text(count: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


@contextmanager
def progress_line(first: str) -> Iterator[Callable[[str], None]]:
    """A spinner with the current step on stderr, where that is a terminal; nothing elsewhere."""
    console = err()
    if not console.is_terminal:
        yield lambda text: None
        return
    from rich.markup import escape

    with console.status(escape(first)) as status:
        yield lambda text: status.update(escape(text))


@contextmanager
def progress_bar(first: str) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """(say, at): the current step, and how many of how many are done; a bar on stderr where that is a terminal."""
    console = err()
    if not console.is_terminal:
        yield (lambda text: None), (lambda done, of: None)
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(escape(first), total=None)
        yield (
            lambda text: bar.update(task, description=escape(text)),
            lambda done, of: bar.update(task, completed=done, total=of),
        )


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def guarded(command: Callable[[], None]) -> int:
    """Run a command; one clear message on stderr and the documented exit code instead of a traceback.

    0 done, 1 unexpected failure, 2 wrong input, 3 no plan, 130 interrupted. `CAPSTAN_TRACEBACK=1` shows the traceback
    of an unexpected failure.
    """
    try:
        command()
        sys.stdout.flush()
    except CapstanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("CAPSTAN_TRACEBACK"):
            raise
        print(f"error: {_unexpected(error)}", file=sys.stderr)
        return 1
    return 0


def _unexpected(error: Exception) -> str:
    """The message of a failure that no one foresaw; what the machine ran out of is named as such."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the output could not be written: no space is left on the device"
    if isinstance(error, MemoryError):
        return "out of memory: this machine cannot hold what was asked for"
    return (
        f"unexpected failure ({type(error).__name__}: {error}); "
        "run again with CAPSTAN_TRACEBACK=1 and report what it prints"
    )
