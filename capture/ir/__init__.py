"""The intermediate representation: Graph, Node, Value and their types."""

from capture.ir.cost import Cost, cost, flops
from capture.ir.dims import Dim, symbol
from capture.ir.graph import Constant, Graph, Impl, Node, RegionRef, Value
from capture.ir.ops import Fusion, Trait, has, is_pure, op_name, register_traits, resolve_op, traits
from capture.ir.origin import CapturedOp, Origin
from capture.ir.types import LiteralType, Range, ScalarType, TensorType, type_of

__all__ = [
    "CapturedOp", "Constant", "Cost", "Dim", "Fusion", "Graph", "Impl", "LiteralType", "Node", "Origin",
    "Range",
    "RegionRef", "ScalarType", "TensorType", "Trait", "Value", "cost", "flops", "has", "is_pure", "op_name",
    "register_traits", "resolve_op", "symbol", "traits", "type_of",
]  # fmt: skip
