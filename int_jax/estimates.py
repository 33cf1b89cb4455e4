"""Estimators over problems, each with a bootstrap interval, in plain Python numbers (ready for JSON).

The problem is the unit of resampling: samples of one problem are not independent evidence.
"""

from collections.abc import Sequence

import numpy as np

CHUNK = 1 << 20  # elements of one block of resampled values: 16 MB with their indices


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold at least one of the c correct ones.

    1 - C(n - c, k) / C(n, k) = 1 - prod_{i=n-c+1..n} (1 - k / i), unbiased for pass@k (Chen et al. 2021,
    arXiv 2107.03374, eq. 1); in logarithms, so that neither large n nor small chances lose digits.

    Raises:
      ValueError: unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n, got k={k} of n={n} samples")
    if not 0 <= c <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n, got c={c} correct of n={n} samples")
    # Fewer wrong ones than k: some factor below would be 1 - k/k, the logarithm of 0.
    if n - c < k:
        return 1.0
    # n = 4, c = 1, k = 2: 1 - (1 - 2/4) = 0.5. expm1 is never above 0 here, and is 0 with no correct
    # ones, of which a minus would make -0.0.
    return abs(float(np.expm1(np.log1p(-k / np.arange(n - c + 1, n + 1)).sum())))


def bootstrap_ci(
    values: Sequence[float], seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of the mean.

    Args:
      values: [problems], one number a problem.
      level: the interval's coverage, in (0, 1).

    Returns:
      (low, high), in the unit of `values`; both the value itself if there is but one problem.

    Raises:
      ValueError: there are no values.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("bootstrap_ci got no values: there is no problem to resample")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, CHUNK // array.size)
    # For 3,000 problems 349 resamples at a time, of one stream: the cut changes no draw.
    for start in range(0, resamples, rows):
        block = means[start : start + rows]
        block[:] = array[rng.integers(array.size, size=(block.size, array.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap_ci(
    a: Sequence[float], b: Sequence[float], seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of mean(a - b), with a[i] and b[i] two measurements of problem i.

    Raises:
      ValueError: a and b differ in length, or are empty.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired interval needs the same problems twice, got {len(a)} and {len(b)}")
    return bootstrap_ci([x - y for x, y in zip(a, b, strict=True)], seed, resamples, level)


def _row(values: Sequence[float], samples: int) -> dict:
    """An estimate as results.json holds it: the mean over problems, its 95% interval, what it rests on."""
    return {
        "mean": float(np.mean(values)),
        "ci95": list(bootstrap_ci(values)),
        "problems": len(values),
        "samples": int(samples),
    }


def summarize(counts: Sequence[tuple[int, int]], ks: Sequence[int] = (1, 8)) -> dict[str, dict]:
    """pass@k over problems; pass@1 is the mean of c / n, which is also called avg@n.

    Args:
      counts: (n samples, c correct) of each problem; n may differ between problems.
      ks: each at most the smallest n.

    Returns:
      {"pass@1": {"mean", "ci95": [low, high], "problems", "samples" (in all)}, ...}

    Raises:
      ValueError: there are no problems, or one has fewer than k samples.
    """
    samples = sum(n for n, _ in counts)
    return {f"pass@{k}": _row([pass_at_k(n, c, k) for n, c in counts], samples) for k in ks}


def gain(
    a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]], ks: Sequence[int] = (1, 8)
) -> dict[str, dict]:
    """pass@k of `a` minus that of `b` on the same problems, with the interval of the paired differences.

    Args:
      a, b: (n samples, c correct) of each problem, in one order. ks: each at most the smallest n.

    Returns:
      {"pass@1": {"mean", "ci95": [low, high], "problems"}, ...}

    Raises:
      ValueError: as `paired_bootstrap_ci` and `pass_at_k`.
    """
    found = {}
    for k in ks:
        ours, theirs = ([pass_at_k(n, c, k) for n, c in counts] for counts in (a, b))
        interval = list(paired_bootstrap_ci(ours, theirs))
        mean = float(np.mean(ours) - np.mean(theirs))
        found[f"pass@{k}"] = {"mean": mean, "ci95": interval, "problems": len(a)}
    return found


Vote = tuple[str, int, bool]  # an answer, how many samples give it, whether it is right


def maj_at_n(votes_per_problem: Sequence[Sequence[Vote]], samples: int) -> dict:
    """Majority vote: the share of problems whose most frequent answer is right. Answers are told apart by their text.

    Args:
      votes_per_problem: the answers of each problem, in the order in which they came up: the earliest wins a tie. A
        sample without an answer does not vote; a problem without votes is not solved.
      samples: in all, for the row.

    Returns:
      {"mean", "ci95": [low, high], "problems", "samples"}

    Raises:
      ValueError: there are no problems.
    """
    winners = [
        max(votes, key=lambda vote: vote[1]) if votes else ("", 0, False) for votes in votes_per_problem
    ]
    return _row([float(right) for _, _, right in winners], samples)


def effect_row(counts: Sequence[tuple[int, int]]) -> dict:
    """One condition of the four-condition table (InT, arXiv 2601.14209).

    Args:
      counts: (n samples, c correct) of each problem.

    Returns:
      {"solved": problems with c > 0, "problems", "accuracy": mean of c / n, in [0, 1], "ci95": [low, high]}

    Raises:
      ValueError: there are no problems.
    """
    accuracies = [c / n for n, c in counts]
    row = _row(accuracies, sum(n for n, _ in counts))
    return {
        "solved": int(sum(c > 0 for _, c in counts)),
        "problems": row["problems"],
        "accuracy": row["mean"],
        "ci95": row["ci95"],
    }


def seeds_ci(
    values_per_seed: Sequence[Sequence[float]], seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> dict:
    """The mean over seeds of each seed's mean over problems, with an interval that holds both kinds of luck.

    Hierarchical percentile bootstrap: seeds are resampled, then problems within each resampled seed. With few seeds it
    is somewhat narrow (a percentile interval over 5 units covers about 90%), so every seed's mean comes with it.

    Args:
      values_per_seed: for each seed one number a problem (for a comparison: the paired differences).

    Returns: {"mean", "ci95": [low, high], "seeds": [each seed's mean]}

    Raises:
      ValueError: there are no seeds, or one has no problems.
    """
    arrays = [np.asarray(values, np.float64) for values in values_per_seed]
    if not arrays or any(array.size == 0 for array in arrays):
        raise ValueError(f"seeds_ci needs problems for each seed, got sizes {[a.size for a in arrays]}")
    rng = np.random.default_rng(seed)
    # [resamples, seeds]: the mean of each seed over its resampled problems.
    within = np.stack(
        [a[rng.integers(a.size, size=(resamples, a.size))].mean(axis=1) for a in arrays], axis=1
    )
    # [resamples, seeds]: which seeds a resample consists of; one that is picked twice has the same problems both times.
    picked = rng.integers(len(arrays), size=(resamples, len(arrays)))
    means = np.take_along_axis(within, picked, axis=1).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    each = [float(a.mean()) for a in arrays]
    return {"mean": float(np.mean(each)), "ci95": [float(low), float(high)], "seeds": each}
