"""The command `bitmex-streams`, also as ``python -m bitmex_streams``. The commands themselves are in cli.py."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, and exit with its status: 0, 1 after an error, 2 for wrong arguments, 130 after Ctrl-C."""
    try:
        from .cli import app

        app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit('bitmex-streams needs typer and rich, of the extra "cli": pip install "bitmex_streams[cli]"')
    except KeyboardInterrupt:  # before or after the work: while it lasts, signals end it in order
        sys.exit(130)


if __name__ == "__main__":
    main()
