"""Fuzzers: mutate models, arrays and run folders, and check that each ends in a result or in one line.

    python tests/fuzz/run.py models --count 50000 --seed 0 --workers 2
    python tests/fuzz/run.py models --seed 0 --only 1234

Case k of seed s is a function of (s, k) and of the corpus alone. The cases run in child processes with
limits on time and memory, which survive crashes. See `outcome` for what is allowed.
"""
