"""Events: one file per kind of example; the file's name is the registered name."""
