"""Compile, execute, compare, benchmark and profile."""

from runtime.benchmark import benchmark
from runtime.compare import compare
from runtime.compile import Compiled, compile
from runtime.measure import measure
from runtime.persist import load
from runtime.profile import profile
from runtime.report import Report

__all__ = ["Compiled", "Report", "benchmark", "compare", "compile", "load", "measure", "profile"]
