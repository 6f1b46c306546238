"""The group of commands, and the one place that turns errors into messages and exit codes.

Exit codes: 0 done, 1 a check or the work failed, 2 the command itself is wrong, 130 interrupted.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from capture.errors import CaptureError, UsageError
from runtime.cli.commands import COMMANDS, make_command
from runtime.cli.terminal import Terminal

__all__ = ["main"]

PROGRAM = "python -m capture"
INTERRUPTED = 130


class Commands(click.Group):
    """A MODEL in place of a command means `run MODEL`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return make_command(name) if name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, spec.summary) for name, spec in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = next(iter(args), "--help")
        if first not in (*COMMANDS, "--help", "-h", "--version"):
            _refuse_misspelled_command(first)
            args = ["run", *args]
        return super().parse_args(ctx, args or ["--help"])


def _tell_version(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        from runtime.machine import versions

        found = versions()
        click.echo(f"torch-capture {found['torch-capture'] or 'from source'}, torch {found['torch']}")
        ctx.exit()


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="MODEL is package.module (its build()), package.module:factory, or a .pt2 file. "
    f"`{PROGRAM} MODEL [options]` is short for `{PROGRAM} run MODEL [options]`.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_version,
    help="Show the version.",
)
def cli() -> None:
    """Capture a PyTorch model's graph, optimise it, run it beside eager, and prove that it is right."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1, 2, or 130 where the user interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    terminal = Terminal(as_json="--json" in args, verbose=_verbosity(args))
    # An interrupt may come while a command is looked up, before it has a terminal of its own.
    state: dict[str, Any] = {"terminal": terminal}
    try:
        result = cli.main(args=args, prog_name=PROGRAM, standalone_mode=False, obj=state)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _report(_as_usage_error(error), state["terminal"])
    except CaptureError as error:
        return _report(error, state["terminal"])
    except (click.Abort, KeyboardInterrupt):
        return _interrupted(state["terminal"])
    except BrokenPipeError:  # the reader of a pipe has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _report(_as_internal_error(error), state["terminal"])
    finally:
        state["terminal"].close()


def _report(error: CaptureError, terminal: Terminal) -> int:
    terminal.error(error)
    if terminal.verbose and error.__traceback__ is not None:
        terminal.note("".join(traceback.format_exception(error)).rstrip())
    return error.exit_code


def _interrupted(terminal: Terminal) -> int:
    during = f" while {terminal.phase}" if terminal.phase else ""
    written = f"written before: {', '.join(terminal.written)}" if terminal.written else "nothing was written"
    terminal.note(f"interrupted{during}; {written}")
    return INTERRUPTED


def _as_usage_error(error: click.ClickException) -> UsageError:
    """click's own errors in our form: a lower-case line, and how to get help."""
    message = error.format_message().rstrip(".")
    what, _, hint = message.replace(" (Did", " Did").replace("?)", "?").partition(". Did you mean ")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else PROGRAM
    hint = f"{hint.rstrip('?')}; " if hint else ""
    return UsageError(what[:1].lower() + what[1:], hint=f"{hint}{command} --help")


def _as_internal_error(error: Exception) -> CaptureError:
    """A fault of ours: say so."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    made = CaptureError(
        "torch-capture failed",
        where=f"{last.filename}:{last.lineno}   {last.line}",
        why=f"{type(error).__name__}: {error}",
        hint="-v shows the full trace; this should not happen, so please report it with the model.",
    )
    made.__traceback__ = error.__traceback__
    made.__cause__ = error
    return made


def _verbosity(args: Sequence[str]) -> int:
    return sum(a == "--verbose" or (a.startswith("-v") and not a.startswith("--")) for a in args)


def _refuse_misspelled_command(first: str) -> None:
    """A word that is no file, no module path and nearly a command is a slip, not a model."""
    if first.startswith("-") or any(mark in first for mark in ".:/") or os.path.exists(first + ".py"):
        return
    if os.path.isdir(first):
        return
    close = difflib.get_close_matches(first, COMMANDS, n=1, cutoff=0.7)
    if close:
        raise UsageError(f"there is no command or module {first!r}", hint=f"{PROGRAM} {close[0]}")
