"""Fuzzing: programs that read what others wrote are given what nobody would write.

`PYTHONPATH=tests python -m fuzz --seconds 60`, or `make fuzz SECONDS=60`; docs/fuzzing.md tells what is tried.
"""
