"""The doors that lead up: `python -m capture` and torch.compile's backend. Bind our floors, then ring."""

import sys
from collections.abc import Sequence
from typing import Any

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


def backend(module: Any, example_inputs: Sequence[Any], **settings: Any) -> Any:
    """What `torch.compile(model, backend="capture")` finds by the entry point: see runtime/backend.py."""
    bind()
    from runtime.backend import capture_backend

    return capture_backend(module, example_inputs, **settings)


def reset() -> None:
    """Forget what the backend has noted; `torch._dynamo.reset()` calls it."""
    if records := sys.modules.get("runtime.backend_records"):
        records.clear()


backend.reset = reset  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
