"""Limits and percentiles of quality, written by ``benchmarks/quality.py --learn``.

Learnt from 50 clean and 50 spoilt simulated heads, none of which is among those that the benchmark reports.
"""

INFINITE = float("inf")
# Between the clean heads and those of the fault that the value is there to notice; how, see there.
LEARNT = {
    "qc_snr": (11.2, INFINITE),
    "qc_edge": (0.289, INFINITE),
    "qc_ghost": (-INFINITE, 1.25),
    "qc_air": (-INFINITE, 0.0229),
    "qc_wrap": (-INFINITE, 0.158),
    "qc_jump": (-INFINITE, 1.97),
}
# The clean heads' values at percentiles 0, 20, ... 100.
REFERENCE = {
    "qc_similarity": (0.74, 0.792, 0.8, 0.811, 0.837, 0.903),
    "qc_mask_dice": (0.926, 0.932, 0.934, 0.935, 0.939, 0.943),
    "qc_mask_ml": (1.23e03, 1.37e03, 1.48e03, 1.58e03, 1.74e03, 2e03),
    "qc_scale": (0.83, 0.861, 0.885, 0.902, 0.933, 0.976),
    "qc_cnr": (4.88, 5.24, 5.43, 6.12, 6.89, 8.65),
    "qc_order": (0.206, 0.302, 0.322, 0.349, 0.363, 0.38),
    "qc_symmetry": (0.839, 0.877, 0.887, 0.904, 0.917, 0.927),
    "qc_asymmetry": (0.00077, 0.00344, 0.00604, 0.00988, 0.0176, 0.0332),
    "qc_snr": (16.1, 17.5, 18.2, 18.7, 19.3, 22.4),
    "qc_edge": (0.315, 0.326, 0.337, 0.344, 0.347, 0.353),
    "qc_ghost": (1, 1.01, 1.01, 1.01, 1.01, 1.01),
    "qc_air": (0, 0, 0, 0, 5.61e-05, 0.00122),
    "qc_wrap": (0, 0, 0, 0, 0, 0.00118),
    "qc_dark": (0.734, 0.792, 0.806, 0.826, 0.863, 0.905),
    "qc_jump": (1.12, 1.16, 1.18, 1.2, 1.23, 1.29),
}
