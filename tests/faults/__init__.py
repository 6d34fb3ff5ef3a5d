"""Faults, one after another, in a service under load (``python -m faults``), and a long calm (``faults.soak``).

Both are programs, no part of the test suite, and run with this folder's parent on PYTHONPATH. docs/reliability.md has
what they showed.
"""
