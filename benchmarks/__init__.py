"""Programs that measure: each prints a table and writes JSON with machine, versions, n and spread.

    python -m benchmarks.NAME [--json FILE] [--tiny]

`--tiny` runs a program in seconds to show that it works; its values mean nothing.
"""
