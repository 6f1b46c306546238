"""Recurrent layers: LSTM, GRU and the plain RNN, one ONNX node a layer."""

from __future__ import annotations

from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers

aten = torch.ops.aten

# The order of torch's gates in the matrices of ONNX.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


@lowers(aten.lstm.input)
def lstm(op: Builder, x: Any, state: list[Any], params: list[Any], *options: Any) -> Any:
    return _layers(op, "LSTM", x, state, params, *options)


@lowers(aten.gru.input)
def gru(op: Builder, x: Any, state: Any, params: list[Any], *options: Any) -> Any:
    return _layers(op, "GRU", x, [state], params, *options, linear_before_reset=1)


@lowers(aten.rnn_tanh.input)
def rnn_tanh(op: Builder, x: Any, state: Any, params: list[Any], *options: Any) -> Any:
    return _layers(op, "RNN", x, [state], params, *options, activation="Tanh")


@lowers(aten.rnn_relu.input)
def rnn_relu(op: Builder, x: Any, state: Any, params: list[Any], *options: Any) -> Any:
    return _layers(op, "RNN", x, [state], params, *options, activation="Relu")


def _layers(
    op: Builder, kind: str, x: Any, states: list[Any], params: list[Any], has_biases: bool, depth: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool, activation: str | None = None,
    **attributes: Any,
) -> list[oir.Value]:  # fmt: skip
    """Returns the output and the last state(s), [depth * directions, N, hidden] each."""
    directions = 2 if bidirectional else 1
    count = 4 if has_biases else 2
    if train and dropout:
        raise op.unsupported("the model was captured in training mode; call model.eval() before capture")
    if len(params) != depth * directions * count:
        raise op.unsupported("with a projection")
    if activation:
        attributes["activations"] = [activation] * directions
    hidden = states[0].type.shape[-1]
    value = op.Transpose(x, perm=[1, 0, 2]) if batch_first else op.value(x)
    last: list[list[oir.Value]] = [[] for _ in states]
    for layer in range(depth):
        own = params[layer * directions * count : (layer + 1) * directions * count]
        sides = [own[d * count : (d + 1) * count] for d in range(directions)]
        w, r = (op.Concat(*(_matrix(op, kind, side[i]) for side in sides), axis=0) for i in (0, 1))
        bias = None
        if has_biases:
            halves = [_matrix(op, kind, side[i]) for side in sides for i in (2, 3)]
            pairs = [op.Concat(*halves[2 * d : 2 * d + 2], axis=1) for d in range(directions)]
            bias = op.Concat(*pairs, axis=0)
        begin = layer * directions
        initial = [op.Slice(s, [begin], [begin + directions], [0]) for s in states]
        made, *final = op.call(
            kind, value, w, r, bias, None, *initial, outputs=1 + len(states), hidden_size=hidden,
            direction="bidirectional" if bidirectional else "forward", **attributes,
        )  # fmt: skip
        value = op.Reshape(op.Transpose(made, perm=[0, 2, 1, 3]), [0, 0, directions * hidden])
        for kept, state in zip(last, final, strict=True):
            kept.append(state)
    output = op.Transpose(value, perm=[1, 0, 2]) if batch_first else value
    return [output, *(states[0] if len(states) == 1 else op.Concat(*states, axis=0) for states in last)]


def _matrix(op: Builder, kind: str, weight: Any) -> oir.Value:
    """[gates * hidden, ...] to [1, gates * hidden, ...] in the order of ONNX's gates."""
    order = _GATES[kind]
    if len(order) > 1:
        parts = op.Split(weight, axis=0, num_outputs=len(order), outputs=len(order))
        weight = op.Concat(*(parts[i] for i in order), axis=0)
    return op.Unsqueeze(weight, [0])
