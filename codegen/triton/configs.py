"""Configurations that a kernel is tried with: a cost model drops what cannot win and puts the rest in order.

What it counts, a device at a time: shared memory that the pipeline's stages need, registers that accumulators
and loads in flight take, tiles that reach past the edge, the last wave of tiles that leaves the device half
empty, bytes read from the cache for each product. The order is a guess that gives a default where nothing can
be measured; on a GPU a tuner measures the few that are left.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import ceil
from typing import Any

from capture.errors import UsageError

__all__ = ["DEVICES", "Device", "TileConfig", "attention_configs", "matmul_configs"]


@dataclass(frozen=True)
class Device:
    """What the model knows of a device: bytes of shared memory a block, multiprocessors, and rates a cycle.

    `products` are a multiprocessor's multiply-adds a cycle in 16 bits, `cache_bytes` what it reads a cycle
    from the second-level cache; both are the vendor's figures, rounded.
    """

    shared: int
    multiprocessors: int
    products: int
    cache_bytes: int = 48


DEVICES = {
    "sm_80": Device(166912, 108, 1024),
    "sm_90": Device(232448, 132, 2048),
    "sm_100": Device(232448, 148, 4096),
    "gfx942": Device(65536, 304, 1024),
}
_REGISTERS = 255  # a thread may have
_OTHER_REGISTERS = 40  # for addresses, loop counters, masks


@dataclass(frozen=True)
class TileConfig:
    """A tile of the result, the step along the sum, and how programs share the tiles.

    `schedule` is "tiles" (one a program), "persistent" (as many programs as run at once, each taking
    tile after tile) or "split" (`splits` programs a tile, each summing a part).
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    schedule: str = "tiles"
    splits: int = 1

    def options(self) -> dict[str, Any]:
        """As a kernel file's `config`."""
        options = {
            "schedule": self.schedule,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "GROUP_M": 8,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }
        return options | ({"splits": self.splits} if self.schedule == "split" else {})

    def shared_bytes(self, itemsize: int) -> int:
        """Of both operands' tiles, a copy for each stage of the pipeline."""
        return self.num_stages * (self.block_m + self.block_n) * self.block_k * itemsize

    def registers(self, itemsize: int, aligned: bool) -> float:
        """A thread's: accumulators, and address and value of each load of at most 16 bytes in flight."""
        threads = 32 * self.num_warps
        loads = (self.block_m + self.block_n) * self.block_k / threads
        vector = 16 // itemsize if aligned else 1
        return self.block_m * self.block_n / threads + 3 * loads / vector + _OTHER_REGISTERS


def matmul_configs(
    batch: int,
    m: int,
    n: int,
    k: int,
    itemsize: int,
    *,
    exact: bool = False,
    aligned: bool = True,
    gathered: bool = False,
    device: str = "sm_90",
    limit: int = 5,
) -> list[TileConfig]:
    """At most `limit` configurations for [batch, m, k] @ [batch, k, n], the most promising first.

    Args:
        itemsize: bytes of an operand's element.
        exact: float32 without tensor cores.
        aligned: rows start at multiples of 16 bytes, so that loads are wide.
        gathered: every element of a has an address of its own, computed for each step.

    Raises:
        UsageError: an unknown device.
    """
    if device not in DEVICES:
        raise UsageError(f"there is no device {device!r}", hint=", ".join(DEVICES))
    known = DEVICES[device]
    fitting = [
        config
        for config in _candidates(m, n, k, itemsize, exact)
        if config.shared_bytes(itemsize) <= min(known.shared, DEVICES["sm_80"].shared)
        and config.registers(itemsize, aligned)
        + 6 * gathered * config.block_m * config.block_k / (32 * config.num_warps)
        <= _REGISTERS
    ]
    ranked = sorted(fitting, key=lambda c: (_cost(c, batch, m, n, k, itemsize, exact, known), str(c)))
    ranked.sort(key=lambda c: c.block_m * c.block_n > 128 * 128)  # no default: an epilogue would spill
    return ranked[:limit]


def _candidates(m: int, n: int, k: int, itemsize: int, exact: bool) -> list[TileConfig]:
    sides = [16, 32, 64, 128] if exact else [16, 32, 64, 128, 256]
    steps = (16, 32) if exact else (32, 64) if itemsize > 1 else (64, 128)
    found = []
    for block_m, block_n, block_k in itertools.product(sides, sides, steps):
        if block_m > 2 * max(m, 8) or block_n > 2 * max(n, 8) or block_k > 2 * max(k, 16):
            continue
        if block_m * block_n > (64 * 64 if exact else 128 * 256):
            continue
        warps = 8 if block_m * block_n >= 128 * 128 else 4 if block_m * block_n >= 32 * 32 else 2
        plain = TileConfig(
            block_m, block_n, block_k, warps, 3 if exact or block_m * block_n >= 128 * 256 else 4
        )
        found.append(plain)
        if not exact:
            found.append(TileConfig(block_m, block_n, block_k, warps, 3, "persistent"))
        for splits in (2, 4, 8, 16):
            if k >= splits * 4 * block_k:
                found.append(TileConfig(block_m, block_n, block_k, warps, plain.num_stages, "split", splits))
    return found


def _cost(
    c: TileConfig, batch: int, m: int, n: int, k: int, itemsize: int, exact: bool, device: Device
) -> float:
    """Cycles of the slowest multiprocessor, about: waves of tiles, each bound by products or by the cache."""
    rate = 128 if exact else device.products * 2 // max(itemsize, 1)
    depth = ceil(k / c.splits / c.block_k) * c.block_k
    reached = min(1.0, c.block_m * c.block_n / (128 * 128)) ** 0.25  # small tiles keep tensor cores waiting
    products = c.block_m * c.block_n * depth / (rate * reached)
    reads = (c.block_m + c.block_n) * depth * itemsize / device.cache_bytes
    inside = max(products, reads) + 0.2 * min(products, reads) + 40 * depth / c.block_k
    start = 1500  # cycles to fill the pipeline and to write the tile
    tiles = batch * ceil(m / c.block_m) * ceil(n / c.block_n) * c.splits
    waves = ceil(tiles / device.multiprocessors)
    if c.schedule == "persistent":
        if waves < 2:
            return float("inf")  # nothing to go on with
        return waves * (inside + 0.5 * start)
    summing = 0.0
    if c.schedule == "split":
        moved = batch * m * n * 4 * 2 * c.splits
        summing = 2 * start + moved / (device.cache_bytes * device.multiprocessors)
    return waves * (inside + start) + summing


def attention_configs(
    head: int, itemsize: int, queries: int, *, masked: bool = False, device: str = "sm_80"
) -> list[dict[str, int]]:
    """Tiles of flash attention, the default first: BLOCK_M queries by BLOCK_N keys.

    Args:
        head: head size.
        queries: rows that there are; few rows take a small tile.
        masked: a tensor masks the scores, which takes registers of its own.
    """
    amd = device.startswith("gfx")
    padded = 1 << (head - 1).bit_length()
    wide = padded >= 128 and itemsize > 2  # exact products take registers along the head, too
    stages = 1 if amd else 2
    most = (
        18 if wide else 36 if itemsize > 2 else 80 if masked or amd else 96
    )  # sums that leave room for more
    found = []
    for block_m, block_n in ((128, 64), (64, 64), (64, 32), (32, 32), (16, 32), (16, 16)):
        if (block_m > 16 and block_m >= 2 * queries) or (amd and block_m > 64):
            continue
        warps = 8 if block_m >= 128 or block_m * padded >= 128 * 128 or wide else 4
        sums = block_m * (padded + block_n) / (32 * warps)  # accumulator and scores
        held = (block_m + 2 * stages * block_n) * padded * itemsize  # q, and k and v in each stage
        if sums <= most and held <= DEVICES[device].shared:
            found.append({"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": warps, "num_stages": stages})
    return found[:4]
