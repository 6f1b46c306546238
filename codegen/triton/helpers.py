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
    "row_max": '''
@triton.jit
def row_max(x, inside):
    """The largest element of each row; NaN where there is one."""
    broken = tl.max(tl.where(inside & (x != x), 1, 0), 1, keep_dims=True)
    best = tl.max(tl.where(inside, x, -float("inf")), 1, keep_dims=True)
    return tl.where(broken > 0, float("nan"), best)
''',
    "row_min": '''
@triton.jit
def row_min(x, inside):
    """The smallest element of each row; NaN where there is one."""
    broken = tl.max(tl.where(inside & (x != x), 1, 0), 1, keep_dims=True)
    best = tl.min(tl.where(inside, x, float("inf")), 1, keep_dims=True)
    return tl.where(broken > 0, float("nan"), best)
''',
    "times": '''
@triton.jit
def times(a, b):
    return a * b
''',
    "larger": '''
@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    "smaller": '''
@triton.jit
def smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    "larger_whole": '''
@triton.jit
def larger_whole(a, b):
    return tl.maximum(a, b)
''',
    "smaller_whole": '''
@triton.jit
def smaller_whole(a, b):
    return tl.minimum(a, b)
''',
    "finite": '''
@triton.jit
def finite(x):
    """0 in place of an infinity: what exponents may be shifted by."""
    return tl.where(tl.abs(x) == float("inf"), 0, x)
''',
    "exp_sum": '''
@triton.jit
def exp_sum(x, inside):
    """(largest element, sum of exp(x - largest)) of each row."""
    top = tl.max(tl.where(inside, x, -float("inf")), 1, keep_dims=True)
    return top, tl.sum(tl.where(inside, tl.exp(x - finite(top)), 0), 1, keep_dims=True)
''',
    "join_exp_sums": '''
@triton.jit
def join_exp_sums(top1, sum1, top2, sum2):
    """The same of two parts of a row together: online softmax (Milakov and Gimelshein, 2018)."""
    top = tl.maximum(top1, top2)
    sum1 = tl.where(sum1 == 0, 0, sum1 * tl.exp(finite(top1) - finite(top)))
    sum2 = tl.where(sum2 == 0, 0, sum2 * tl.exp(finite(top2) - finite(top)))
    return top, sum1 + sum2
''',
    "moments": '''
@triton.jit
def moments(x, inside):
    """(count, mean, sum of squared differences from it) of each row."""
    count = tl.sum(tl.where(inside, 1.0, 0.0), 1, keep_dims=True)
    mean = tl.sum(tl.where(inside, x, 0), 1, keep_dims=True) / count
    d = tl.where(inside, x - mean, 0)
    return count, mean, tl.sum(d * d, 1, keep_dims=True)
''',
    "join_moments": '''
@triton.jit
def join_moments(count1, mean1, square1, count2, mean2, square2):
    """The same of two parts of a row together (Welford; Chan, Golub and LeVeque, 1979)."""
    count = count1 + count2
    d = mean2 - mean1
    share = tl.where(count == 0, 0, count2 / tl.maximum(count, 1))
    return count, mean1 + d * share, square1 + square2 + d * d * count1 * share
''',
    "first_where": '''
@triton.jit
def first_where(x, best, column, inside):
    """The first column of each row that holds its best element; a NaN is as good as another."""
    hit = inside & ((x == best) | ((x != x) & (best != best)))
    return tl.min(tl.where(hit, column, 2147483647), 1, keep_dims=True)
''',
}  # fmt: skip
NEEDS: dict[str, tuple[str, ...]] = {  # helpers that a helper calls
    "exp_sum": ("finite",),
    "join_exp_sums": ("finite",),
}
