"""The small workloads that take any batch, as module:factory."""

BATCHED = [
    "bert:small",
    "bert:small_masked",
    "gpt2:small",
    "llama:small",
    "mlp:small",
    "resnet:small",
    "vit:small",
]
