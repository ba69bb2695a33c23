"""Make a network's probabilities mean what they say, from participants it was not trained on."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from adlib.model import softmax


def fit_calibration(logits: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Temperature and class biases that minimise the log loss: bias-corrected temperature scaling.

    Biases mend what few training scans leave: middle classes that are never the most probable. They are held small by
    a ridge worth half an observation.

    Returns
    -------
    temperature : float
    bias : (K,) float64

    References
    ----------
    Alexandari, Kundaje & Shrikumar 2020, arXiv:1901.06852; Guo et al. 2017, arXiv:1706.04599.
    """

    def loss(values: np.ndarray) -> float:
        p = softmax(logits, float(np.exp(values[0])), values[1:])
        fit = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()
        return float(fit + 0.5 * (values[1:] ** 2).sum() / len(y))

    limits = [(np.log(0.1), np.log(10.0)), *[(-3.0, 3.0)] * logits.shape[1]]
    values = minimize(loss, np.zeros(1 + logits.shape[1]), method="L-BFGS-B", bounds=limits).x
    return float(np.exp(values[0])), values[1:]
