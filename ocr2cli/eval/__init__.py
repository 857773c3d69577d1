"""Scoring: suites of pages with truth, references, gates and the report.

Start at `run.py`. Knows nothing about how a page is read: that is a function handed in.
"""
