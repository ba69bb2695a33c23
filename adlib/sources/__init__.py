"""Readers: each lists the scans of one kind of dataset in the same table.

Imports study, imaging, parallel, phantom.
Start with `reading.read_source`.
"""
