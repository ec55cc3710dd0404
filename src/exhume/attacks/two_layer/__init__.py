"""Two-layer networks: inputs from moments of one gradient, with a guarantee."""
