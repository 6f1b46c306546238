"""Device functions that kernels share: what Triton's own language lacks, in a form that its interpreter runs.

Each is written so that it is as exact in float64, and so that NaN and infinities go where PyTorch has them.
"""

from __future__ import annotations

HELPERS: dict[str, str] = {
    "tanh": '''
@triton.jit
def tanh(x):
    """Near 0 a series, where 1 - exp(-2x) would cancel."""
    size = tl.abs(x)
    t = tl.exp(-2 * size)
    s = x * x
    series = size * (1 - s * (1 / 3 - s * (2 / 15 - s * (17 / 315 - s * (62 / 2835 - s * 1382 / 155925)))))
    far = tl.where(size < 0.05, series, (1 - t) / (1 + t))
    return tl.where(x < 0, -far, far)
''',
    "log1p": '''
@triton.jit
def log1p(x):
    """log(1 + x), exact for small x: the rounding of 1 + x is divided out (Kahan)."""
    u = 1 + x
    d = u - 1
    small = d == 0
    made = tl.log(u) * (x / tl.where(small, 1, d))
    return tl.where(small, x, tl.where(u == float("inf"), u, made))
''',
    "expm1": '''
@triton.jit
def expm1(x):
    """exp(x) - 1, exact for small x: the rounding of exp(x) is divided out (Kahan)."""
    u = tl.exp(x)
    plain = (u == 1) | (u - 1 == -1) | (u == float("inf"))
    made = (u - 1) * (x / tl.log(tl.where(plain, 2, u)))
    return tl.where(u == 1, x, tl.where(plain, u - 1, made))
''',
    "trunc": '''
@triton.jit
def trunc(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))
''',
    "rounded": '''
@triton.jit
def rounded(x):
    """To the nearest whole number; halves to the even one."""
    low = tl.floor(x)
    d = x - low
    even = tl.floor(low * 0.5) * 2 == low
    return tl.where((d < 0.5) | ((d == 0.5) & even), low, tl.where(d == d, low + 1, x))
''',
    "remainder": '''
@triton.jit
def remainder(a, b):
    """With the sign of the divisor, as Python's."""
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)
''',
    "floor_div": '''
@triton.jit
def floor_div(a, b):
    """Towards minus infinity; Triton's own division of integers is towards 0."""
    r = a % b
    return a // b - ((r != 0) & ((r < 0) != (b < 0))).to(a.dtype)
''',
    "floor_div_float": '''
@triton.jit
def floor_div_float(a, b):
    """Towards minus infinity, from the exact remainder."""
    r = a % b
    q = (a - r) / b
    q = tl.where((r != 0) & ((r < 0) != (b < 0)), q - 1, q)
    whole = tl.floor(q)
    whole = tl.where(q - whole > 0.5, whole + 1, whole)
    return tl.where(b == 0, a / b, whole)
''',
    "power": '''
@triton.jit
def power(x, y):
    """x ** y by exp2 and log2 in float64, so that a large exponent does not enlarge the error."""
    y = tl.zeros_like(x) + y
    size = tl.exp2(y.to(tl.float64) * tl.log2(tl.abs(x).to(tl.float64))).to(x.dtype)
    odd = (tl.floor(y) == y) & (tl.floor(y * 0.5) * 2 != y)
    broken = (x < 0) & (x > -float("inf")) & (tl.floor(y) != y)
    made = tl.where((x < 0) & odd, -size, tl.where(broken, float("nan"), size))
    return tl.where((x == 1) | (y == 0), 1, made)
''',
}  # fmt: skip
