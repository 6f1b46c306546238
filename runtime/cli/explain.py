"""`explain`: the fate of every captured op, with reason and source line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from rich.text import Text

from runtime.cli import account
from runtime.cli.steps import chosen_level, load_model, machine_settings, optimize_model, title_of
from runtime.cli.terminal import Terminal
from runtime.report import captured_ops
from viz.labels import common_name

STYLES = {"kept": "", "fused": "cyan", "folded": "green", "removed": "dim", "replaced": "yellow"}


def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """A row for each captured op; nothing is executed."""
    with machine_settings(options):
        loaded = load_model(terminal, options)
        made = optimize_model(terminal, options, loaded, chosen_level(options, default=2))
    rows = captured_ops(made.graph)
    terminal.line(Text(options.model, style="bold"), title_of(loaded, options.model))
    terminal.print()
    account.tell_capture(terminal, made.captured, made.seconds["capture"])
    fates = Counter(row["fate"] for row in rows)
    shown = [f"{number} {fate}" for fate in STYLES if (number := fates[fate])]
    terminal.line(f"{len(rows)} ops", *shown, label="fates")
    terminal.print()
    tell_rows(terminal, rows)
    terminal.json({"model": options.model, "frontend": made.captured.frontend, "captured_ops": rows})
    return 0


def tell_rows(terminal: Terminal, rows: Sequence[dict[str, Any]]) -> None:
    """One line an op where that fits, else two."""
    if not rows:
        return
    cells = [
        (
            common_name(row["op"]),
            row["fate"],
            row["module"],
            f"{row['file']}:{row['line']}" * bool(row["file"]),
        )
        for row in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    because = [reason(row) for row in rows]
    one_line = sum(widths) + 8 + max(map(len, because)) <= terminal.width
    for row, (op, fate, module, place), why in zip(rows, cells, because, strict=True):
        text = (
            Text(op.ljust(widths[0]))
            .append("  ")
            .append(fate.ljust(widths[1]), style=STYLES.get(row["fate"], ""))
        )
        if one_line:
            text.append(f"  {module:<{widths[2]}}  {place:<{widths[3]}}  ").append(why, style="dim")
            terminal.print(text)
        else:
            terminal.line(text, f"{module}  {place}", *([why] if row["fate"] == "kept" else []))
            if row["fate"] != "kept":
                terminal.line(Text(why, style="dim"), indent=4)


def reason(row: dict[str, Any]) -> str:
    """``fuse: into fusion.conv, computed by %12 (onednn.conv)``."""
    why = ": ".join(filter(None, (row["pass"], row["reason"])))
    node = row["node"] + (f" ({row['kernel']})" if row["kernel"] else "")
    where = {"kept": node, "fused": f"computed by {node}"}.get(row["fate"], "")
    return ", ".join(filter(None, (why, where)))
