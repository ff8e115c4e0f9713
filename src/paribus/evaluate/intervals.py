"""Error bars and paired tests for counts of right answers; exact where exact is cheap."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a proportion, 95 % by default: sound also at 0, at n and for small n (Wilson, 1927).

    Args:
        successes: out of n.
        n: how often it was tried; at least 1.
        z: quantile of the normal distribution.
    """
    if not n:
        return 0.0, 1.0
    share, square = successes / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == n else centre + half


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k answers drawn without replacement from n, `correct` of them right, hold a right one.

    The unbiased estimator of pass@k (arXiv:2107.03374). Raises ValueError if k > n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} answers")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of at least one value, and its standard error; that of a single value is not known (None)."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def clustered_stderr(values: Sequence[float], clusters: Sequence[object]) -> float:
    """Standard error of the mean of values that vary together within a cluster (Liang & Zeger, 1986; arXiv:2411.00640).

    Args:
        values: of the items.
        clusters: of each item: questions about one text, for example.
    """
    mean = sum(values) / len(values)
    sums: dict[object, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    return math.sqrt(sum(total**2 for total in sums.values())) / len(values)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of "both are equally good" from the items that only one of two got right (McNemar, 1947).

    Args:
        only_first: items that the first alone got right.
        only_second: items that the second alone got right.
    """
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**n))


def compare(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """Two models on the same items: only_first, only_second, difference of accuracy (second - first), p (McNemar)."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    return {
        "n": len(first),
        "only_first": only_first,
        "only_second": only_second,
        "difference": (only_second - only_first) / max(len(first), 1),
        "p": mcnemar_exact(only_first, only_second),
    }
