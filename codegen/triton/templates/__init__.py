"""Kernels written by hand, with holes for what runs before and after them.

A template is one jinja file whose blocks are the pieces of a kernel file; the Python file beside it fills the
holes, and another reads from a node of the graph what to fill them with.
"""

from codegen.triton.templates.match import template_for

__all__ = ["template_for"]
