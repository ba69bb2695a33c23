"""Notebook 04: scores with intervals, prediction sets, baselines, subgroups, explanation.

Imports all rooms up to training.
Start with `evaluate`.
"""
