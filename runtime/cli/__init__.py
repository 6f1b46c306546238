"""The command line: `python -m capture MODEL [options]`, one file a command."""

from runtime.cli.app import main

__all__ = ["main"]
