"""One decoding step of GPT-2 with a key-value cache: eager, the cache copied at each step, and in place.

    python -m benchmarks.decode
    python -m benchmarks.decode --length 1024 --threads 1

The three take turns in one process.
"""

from __future__ import annotations

import argparse

import torch

import runtime
from models import gpt2


def main() -> None:
    """Print the median and minimum of each in ms, and the ratio of medians."""
    parser = argparse.ArgumentParser(description="One decoding step of GPT-2 with a key-value cache.")
    parser.add_argument("--length", type=int, default=512, help="tokens that the cache holds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    args = gpt2.example_inputs(1, "with_cache")
    models = {name: gpt2.with_cache(1, options.length).eval() for name in ("eager", "copied", "in place")}
    steps = {
        "eager": models["eager"],
        "copied": runtime.compile(models["copied"], args, backend="aten", disable=("reinplace",)),
        "in place": runtime.compile(models["in place"], args, backend="aten"),
    }
    found = runtime.benchmark(steps, args)
    for name, row in found.rows.items():
        ratio = f"eager / this {found.ratios[name]:.2f}" if name in found.ratios else ""
        print(f"{name:10} median {row.median:8.3f} ms   min {row.min:8.3f} ms   {ratio}".rstrip())


if __name__ == "__main__":
    main()
