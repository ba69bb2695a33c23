"""The predicted risk of one of two outcomes: decision curve, calibration, predictive values, for many weightings."""

import numpy as np

THRESHOLDS = np.round(np.arange(0.01, 1, 0.01), 2)  # of the risk, in a decision curve
SPECIFICITY = 0.9  # at which sensitivity is given
GRID = np.linspace(0, 1, 101)  # of the risk, in a calibration curve
SPAN = 0.75  # share of the items that a smoothed value rests on, the default of loess
SMALLEST = 1e-6  # risks are kept this far from 0 and 1 before logits are taken
STEPS = 50  # of Newton's method
TOLERANCE = 1e-9


def binary_view(
    y: np.ndarray, p: np.ndarray, classes: tuple[str, ...], binary: dict[str, tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The items of two groups of classes, and the risk of the positive one among the two.

    Parameters
    ----------
    y : (n,) int
        True classes.
    p : (n, K) float
        Probabilities.
    classes : tuple of str
    binary : dict
        Names of the classes of ``negative`` and ``positive``.

    Returns
    -------
    taken : (n,) bool
        Items of these classes, m of them.
    positive : (m,) bool
    risk : (m,) float64
    """
    negative, positive = ([classes.index(c) for c in binary[side]] for side in ("negative", "positive"))
    taken = np.isin(y, negative + positive)
    up, down = p[taken][:, positive].sum(1), p[taken][:, negative].sum(1)
    return taken, np.isin(y[taken], positive), up / np.maximum(up + down, 1e-12)


def net_benefit(
    positive: np.ndarray, risk: np.ndarray, weights: np.ndarray, thresholds: np.ndarray = THRESHOLDS
) -> np.ndarray:
    """True positives less false ones at the odds of the threshold, per item, where risks from the threshold up act.

    Parameters
    ----------
    positive : (n,) bool
    risk : (n,) float
        All equal to 1 for the policy to treat all.
    weights : (B, n) float
        One weighting of the items per row.
    thresholds : (T,) float
        Between 0 and 1.

    Returns
    -------
    (B, T) float64

    References
    ----------
    Vickers & Elkin 2006, doi:10.1177/0272989X06295361.
    """
    treated = risk[:, None] >= thresholds
    gain = np.where(positive[:, None], 1.0, -thresholds / (1 - thresholds))
    with np.errstate(invalid="ignore"):
        return weights @ (treated * gain) / weights.sum(1, keepdims=True)


def predictive_values(
    positive: np.ndarray, risk: np.ndarray, weights: np.ndarray, prevalence: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Share of true decisions for, and against, the positive outcome, where risks of 0.5 and more decide for it.

    Parameters
    ----------
    positive : (n,) bool
    risk : (n,) float
    weights : (B, n) float
    prevalence : float or None
        Share of positives in the population; None for that of the items.

    Returns
    -------
    (B,) float64, (B,) float64
        Positive and negative predictive value; NaN where a weighting has no such decision, or lacks an outcome.

    References
    ----------
    Altman & Bland 1994, doi:10.1136/bmj.309.6947.102.
    """
    up = risk >= 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, fallout = (weights[:, of] @ up[of] / weights[:, of].sum(1) for of in (positive, ~positive))
        share = weights @ positive / weights.sum(1) if prevalence is None else prevalence
        true, false = share * sensitivity, (1 - share) * fallout
        rejected, missed = (1 - share) * (1 - fallout), share * (1 - sensitivity)
        return true / (true + false), rejected / (rejected + missed)


def sensitivity_at(
    positive: np.ndarray, risk: np.ndarray, weights: np.ndarray, specificity: float = SPECIFICITY
) -> np.ndarray:
    """The greatest sensitivity of any threshold that has at least this specificity.

    Parameters
    ----------
    positive : (n,) bool
    risk : (n,) float
    weights : (B, n) float
    specificity : float

    Returns
    -------
    (B,) float64
        NaN where a weighting lacks an outcome.
    """
    if positive.all() or not positive.any():
        return np.full(len(weights), np.nan)
    up, down = (np.flatnonzero(of)[np.argsort(risk[of], kind="stable")] for of in (positive, ~positive))
    rejected = np.cumsum(weights[:, down], axis=1)
    enough = rejected >= specificity * rejected[:, -1:] * (1 - 1e-12)
    highest = np.searchsorted(risk[up], risk[down], side="right")[enough.argmax(1)]  # positives not above this negative
    sums = np.pad(np.cumsum(weights[:, up], axis=1), ((0, 0), (1, 0)))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 1 - np.take_along_axis(sums, highest[:, None], axis=1)[:, 0] / sums[:, -1]
    return np.where(rejected[:, -1] > 0, found, np.nan)


def calibration_line(positive: np.ndarray, risk: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Calibration intercept and slope, by logistic regression of the outcome on the logit of the risk.

    The intercept is that of a line of slope 1 (calibration in the large): below 0 risks are too high on average. A
    slope below 1 says that they are too extreme.

    Parameters
    ----------
    positive : (n,) bool
    risk : (n,) float
    weights : (B, n) float

    Returns
    -------
    (B,) float64, (B,) float64
        NaN where a weighting lacks an outcome; the slope also where risks are constant or separate the outcomes.

    References
    ----------
    Van Calster et al. 2019, doi:10.1186/s12916-019-1466-7.
    """
    x = np.clip(risk, SMALLEST, 1 - SMALLEST)
    x = np.log(x / (1 - x))
    fixed = _logistic(x, positive, weights, free=1)[:, 0]
    middle, scale = (x.mean(), x.std()) if len(x) else (0.0, 0.0)
    if scale < SMALLEST:
        return fixed, np.full(len(weights), np.nan)
    return fixed, _logistic((x - middle) / scale, positive, weights, free=2)[:, 1] / scale


def _logistic(x: np.ndarray, positive: np.ndarray, weights: np.ndarray, free: int) -> np.ndarray:
    """Intercepts and slopes (B, 2) of greatest likelihood by Newton's method; with one free, the slope stays 1."""
    line = np.tile([0.0, 1.0], (len(weights), 1))
    design = np.column_stack([np.ones_like(x), x])[:, :free]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(x), free * free)
    step = np.full((len(weights), free), np.inf)
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            p = 1 / (1 + np.exp(-(line[:, :1] + line[:, 1:] * x)))
            gradient = (weights * (positive - p)) @ design
            hessian = ((weights * p * (1 - p)) @ products).reshape(-1, free, free)
            solvable = np.linalg.det(hessian) > 1e-12
            hessian[~solvable] = np.nan
            step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
            longest = np.maximum(np.abs(line[:, :free]), 1)
            line[:, :free] += np.clip(step, -longest, longest)
            if not (np.abs(step) > TOLERANCE).any():
                break
    line[~(np.abs(step) <= TOLERANCE).all(1)] = np.nan
    return line


def smoothed(positive: np.ndarray, risk: np.ndarray, weights: np.ndarray, grid: np.ndarray = GRID) -> np.ndarray:
    """Observed share of positives by predicted risk, smoothed by a local line (loess of degree 1, tricube weights).

    Parameters
    ----------
    positive : (n,) bool
    risk : (n,) float
    weights : (B, n) float
    grid : (G,) float
        Risks to smooth at.

    Returns
    -------
    (B, G) float64
        Within 0 and 1; NaN outside the range of the risks, and where a weighting has too few items near.

    References
    ----------
    Austin & Steyerberg 2014, doi:10.1002/sim.5941; Cleveland 1979, doi:10.1080/01621459.1979.10481038.
    """
    distance = np.abs(risk[:, None] - grid)
    reach = np.sort(distance, axis=0)[int(np.ceil(SPAN * len(risk))) - 1]
    near = np.clip(1 - (distance / np.maximum(reach, 1e-12)) ** 3, 0, None) ** 3
    offset = risk[:, None] - grid
    total, first, second = (weights @ (near * offset**power) for power in range(3))
    share, cross = (weights @ (near * offset**power * positive[:, None]) for power in range(2))
    with np.errstate(invalid="ignore", divide="ignore"):
        determinant = total * second - first**2
        line = (second * share - first * cross) / np.where(determinant > 1e-12, determinant, np.nan)
    inside = (grid >= risk.min()) & (grid <= risk.max())
    return np.where(inside, np.clip(line, 0, 1), np.nan)
