"""Array geometry: orientation, resampling, slices, and the MNI152 template.

Imports study.
Start with `volume` and `atlas`.
"""
