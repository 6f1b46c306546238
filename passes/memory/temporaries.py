"""What a fusion region takes beside its result where no kernel runs it, but its operators one by one.

    %3 = fusion.reduction(%x) {            one kernel: registers
        %0 = aten.exp(%p0)                 three calls: the memory of %0, and of %1 until %2 is made
        %1 = aten.sum.dim_IntList(%0, [-1], True)
        %2 = aten.div.Tensor(%0, %1)
    }

Whether there is a kernel is known only when the graph is compiled for a backend, so the plan tells this
number apart.
"""

from __future__ import annotations

from capture.ir import Fusion, Node
from passes.buffers import buffers
from passes.fusion.target import needs_memory
from passes.liveness import liveness
from passes.memory.sizes import Sizes
from passes.memory_check import lower_bound


def temporaries_bytes(node: Node, sizes: Sizes) -> int:
    """Most bytes alive at once in a region's temporaries; those without an upper bound are not counted.

    0 for a node whose recipe names a kernel, and for a region that runs in the memory of its result.
    """
    if not isinstance(node.op, Fusion) or node.impl is not None or node.region is None:
        return 0
    if needs_memory(list(node.region.nodes)) is None:
        return 0
    nbytes, live = buffers(node.region).nbytes, liveness(node.region)
    return lower_bound([(*span, sizes(nbytes[home]) or 0) for home, span in live.intervals.items()])


__all__ = ["temporaries_bytes"]
