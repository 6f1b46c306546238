"""Plain PyTorch workloads, full-size by default. They need torch and nothing else.

`models.digits` and `models.text` are small and trained when they are built, so that what a change costs in
accuracy can be seen (`digits` needs scikit-learn for its data). Beside what is told below they offer

    calibration_data() -> list of input tuples          evaluate(fn) -> a score, the higher the better

A model module holds *factories*, functions that return an `nn.Module` in eval mode:

    build()                                  the full-size model: what `models.resnet` stands for
    small()                                  the same architecture in miniature, for tests
    resnet18(), with_cache(), ...            further variants, named as `models.resnet:resnet18`

and one function for the inputs of any of them:

    example_inputs(batch=1, factory="build") -> tuple of positional tensors for `factory`'s model

`factory` is the factory's name, because variants differ in what they take: `resnet.small()` sees 64x64
images, `resnet.build()` 224x224. A name that the module does not know raises `ValueError`.

Other weights are random, yet the same at every call; the global random state is left as it was. State-dict
keys are those of the library named in each module's docstring, so that real checkpoints load.
"""
