"""`capstan` and `python -m capstan`: Ctrl-C is answered with one line even while Python still imports the rest."""

from __future__ import annotations

import gc
import sys

LONG_LIVED = 50_000  # objects between two looks for cycles: nearly all that start-up and planning make stay


def main() -> None:
    """Console entry point: runs the command and exits with the documented code; 130 where it was interrupted."""
    gc.set_threshold(LONG_LIVED)
    try:
        from capstan.cli import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
