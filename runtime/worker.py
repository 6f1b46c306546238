"""One engine in a process of its own: loads a model, answers with times. Started by runtime/processes.py.

The argument is a JSON object: ``engine`` (eager, aten, onnx, inductor, dynamo: torch.compile with ours, or
``module:function``, which is given model and object, and returns the call and what is to be told of it),
``model`` and whatever else `capture.loading.load` takes, ``level``, ``disable``, ``passes``, ``rules``,
``frontend``, ``dynamic``, ``seed``, ``threads``, ``warmup``. Each line on stdin, ``{"calls": n}``, is
answered by ``{"samples": [ms, ...], "waited": share}`` (see runtime/cores.py).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from runtime.benchmark import no_garbage_collection, time_calls, warm_up
from runtime.cores import Waiting

__all__ = ["main"]


def main() -> None:
    """Serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a model prints must not stand among the answers
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])

    def reply(answer: Mapping[str, Any]) -> None:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    try:
        call, described = prepare(spec)
    except Exception as error:
        reply({"error": str(error) or type(error).__name__})
        return
    with torch.no_grad(), no_garbage_collection():
        reply({**described, "seconds_a_call": warm_up(call, spec["warmup"])})
        for line in sys.stdin:
            waiting = Waiting()
            samples = time_calls(call, json.loads(line)["calls"])
            reply({"samples": samples, "waited": waiting.share()})


def prepare(spec: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The call to be timed, and what it cost to make and whether it is right."""
    from capture.loading import load, parse_dynamic, parse_input
    from passes import load_rules
    from runtime.compare import compare
    from runtime.compile import compile
    from runtime.reference import runnable, undone

    for path in spec.get("rules", ()):
        load_rules(path)
    torch.manual_seed(spec.get("seed", 0))
    inputs: Any = spec.get("inputs_file")
    if spec.get("inputs"):
        inputs = dict(parse_input(text) for text in spec["inputs"])
    loaded = load(
        spec["model"],
        batch=spec.get("batch", 1),
        weights=spec.get("weights"),
        inputs=inputs,
        allow_pickle=spec.get("allow_pickle", False),
    )
    start = time.perf_counter()
    if ":" in spec["engine"]:
        module, _, name = spec["engine"].partition(":")
        call, described = getattr(importlib.import_module(module), name)(loaded, spec)
        return call, {"seconds_to_start": time.perf_counter() - start, **described}
    if spec["engine"] == "eager":
        engine = runnable(loaded.module)
    elif spec["engine"] == "inductor":
        engine = torch.compile(runnable(loaded.module))
    elif spec["engine"] == "dynamo":
        settings = {name: spec[name] for name in ("level", "disable", "passes") if spec.get(name) is not None}
        engine = torch.compile(runnable(loaded.module), backend="capture", options=settings)
    else:
        engine = compile(
            loaded.module,
            loaded.args,
            loaded.kwargs,
            level=spec.get("level", 2),
            backend=spec["engine"],
            disable=spec.get("disable", ()),
            passes=spec.get("passes"),
            frontend=spec.get("frontend", "auto"),
            dynamic_shapes=parse_dynamic(spec["dynamic"]) if spec.get("dynamic") else None,
            threads=spec["threads"],
        )
    with torch.no_grad(), undone(engine):  # or a cache would hold already what both sides write to it
        engine(*loaded.args, **loaded.kwargs)
        described = {"seconds_to_start": time.perf_counter() - start}
    if spec["engine"] != "eager":
        parity = compare(loaded.module, engine, loaded.args, loaded.kwargs)
        described |= {"ok": parity.ok, "error_vs_fp64": parity.error_vs_fp64, "reason": parity.reason}
    return lambda: engine(*loaded.args, **loaded.kwargs), described
