"""The table of tolerances, where results are judged; passes judge rewrites by the same one."""

from capture.tolerances import Tolerance, tolerance

__all__ = ["Tolerance", "tolerance"]
