"""Means and percentages with their uncertainty."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

Z95 = 1.96  # 95 % of a normal distribution lie within so many standard errors of its mean


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over independent units, such as images, with its 95 % confidence interval.

    Fields:
        value: the mean.
        standard_error: of the mean.
        low95, high95: ends of the 95 % confidence interval.
        n: number of units.
    """

    value: float
    standard_error: float
    low95: float
    high95: float
    n: int

    @classmethod
    def mean(cls, values: np.ndarray) -> "Estimate | None":
        """Estimate the mean of float [n], with Student's t interval; None for fewer than two values."""
        n = len(values)
        if n < 2:
            return None
        centre = float(np.mean(values, dtype=np.float64))
        error = float(np.std(values, ddof=1, dtype=np.float64)) / math.sqrt(n)
        half = float(stdtrit(n - 1, 0.975)) * error
        return cls(centre, error, centre - half, centre + half, n)

    @classmethod
    def percent(cls, shares: np.ndarray) -> "Estimate | None":
        """Estimate the mean of bool or float [n] in [0, 1] as a percentage; None for no values.

        For bools the interval is Wilson's, which stays valid if all agree: 20 of 20 gives 84 to 100 %, not 100 to 100.
        For other shares it is the normal one, clipped to 0..100.
        """
        n = len(shares)
        if n == 0:
            return None
        p = float(np.mean(shares, dtype=np.float64))
        if n > 1 and not np.isin(shares, (0, 1)).all():
            error = float(np.std(shares, ddof=1, dtype=np.float64)) / math.sqrt(n)
            low, high = p - Z95 * error, p + Z95 * error
        else:
            error = math.sqrt(p * (1 - p) / n)
            centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
            half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
            low, high = centre - half, centre + half
        return cls(100 * p, 100 * error, 100 * max(low, 0.0), 100 * min(high, 1.0), n)
