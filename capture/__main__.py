"""`python -m capture`: bind our floors, then ring the command line."""

import sys
from collections.abc import Sequence

from capture._floors import bind
from capture.errors import CaptureError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        bind()
    except CaptureError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    try:
        from runtime.cli import main as run
    except KeyboardInterrupt:  # importing torch takes seconds
        print("interrupted while starting; nothing was written", file=sys.stderr)
        return 130
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
