"""What is run: one attack or one bound on a setting, one measurement of utility."""
