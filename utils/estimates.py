"""A number measured on some of many, with what is not known about it."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

Z95 = 1.96  # standard errors on either side that hold 95 % of a normal distribution


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over independent units (images), in the unit that the name of the value says.

    Fields:
        value: the mean.
        standard_error: of the mean.
        low95, high95: an interval that holds the true mean in 95 of 100 such measurements.
        n: units.
    """

    value: float
    standard_error: float
    low95: float
    high95: float
    n: int

    @classmethod
    def mean(cls, values: np.ndarray) -> "Estimate | None":
        """Of float [n], with the interval of Student's t, which holds for a few values too; None of fewer than two."""
        n = len(values)
        if n < 2:
            return None
        centre = float(np.mean(values, dtype=np.float64))
        error = float(np.std(values, ddof=1, dtype=np.float64)) / math.sqrt(n)
        half = float(stdtrit(n - 1, 0.975)) * error
        return cls(centre, error, centre - half, centre + half, n)

    @classmethod
    def percent(cls, shares: np.ndarray) -> "Estimate | None":
        """Of bool or float [n] in [0, 1], as a percentage; None of no values.

        Of yes and no the interval is Wilson's, which stays honest where all agree: 20 of 20 says 84 to 100 %, not 100
        to 100. Of shares in between it is that of a normal distribution, within 0 to 100.
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
