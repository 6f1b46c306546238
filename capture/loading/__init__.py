"""From what a user types to a module and its example inputs.

models.resnet    pkg.mod:factory    path/to/file.py:factory    program.pt2
"""

from capture.loading.inputs import parse_dynamic, parse_input
from capture.loading.model import Loaded, load

__all__ = ["Loaded", "load", "parse_dynamic", "parse_input"]
