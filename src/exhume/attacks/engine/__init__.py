"""The shared solvers of optimisation attacks and their exchangeable parts."""
