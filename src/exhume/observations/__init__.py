"""Observation models F: one file each."""
