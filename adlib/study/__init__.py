"""What a study is and how it runs: params, records, tables, step keys, execution, published results.

Imports nothing of adlib.
Start with `params` and `steps`.
"""
