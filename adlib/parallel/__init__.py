"""Map a function over scans: in this process, in local workers, or on a cluster.

Imports study.
Start with `mapping.map_scans`.
"""
