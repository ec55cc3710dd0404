"""Experiments: trials, sweeps, executors, the store, flags and the report."""
