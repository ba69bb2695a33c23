"""Notebook 05: classify one scan with a trained model: input checks, result, form.

Imports all other rooms.
Start with `prediction`.
"""
