"""`capstan`: all commands, in the order in which the help shows them."""

from __future__ import annotations

import sys

from capstan import plan_commands, declare_commands, run_commands  # isort: skip - the order of the help
from capstan.app import app

__all__ = ["app", "declare_commands", "main", "plan_commands", "run_commands"]


def main() -> None:
    """Run the command line. A reader of stdout that has gone (`capstan --help | head -1`) is no failure."""
    try:
        app()
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # which typer ends with 1
            raise
        sys.exit(0)


if __name__ == "__main__":
    main()
