"""Real data, with licences: one file each; the file's name is the registered name."""
