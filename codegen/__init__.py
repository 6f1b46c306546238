"""Graph -> text that runs: Python, Triton, ONNX."""
