"""How anything is run: records, options, executors and the store."""
