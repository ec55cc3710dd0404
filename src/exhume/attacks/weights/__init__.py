"""Trained weights: examples whose margin gradients explain them."""
