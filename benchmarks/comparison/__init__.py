"""Measures this project against peers in turns; `benchmarks/run.py` is the command.

`rows` has all rows, `turns` measures one, `machine` watches the load, and `page` draws what was found.
"""
