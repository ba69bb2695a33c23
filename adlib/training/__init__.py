"""Notebook 03: splits, slices, the ResNet50, its training and the controls.

Imports study, imaging, parallel, audit, preprocess.
Start with `runs.train_study`.
"""
