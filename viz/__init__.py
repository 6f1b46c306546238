"""Graph, memory plan and report data in; SVG and HTML out."""
