"""Matplotlib figures that monitors log and reports show.

Nothing here measures: a figure is drawn from numbers that are given to it.
"""
