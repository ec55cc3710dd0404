"""What every registered member has to pass, whoever wrote it: one file per kind.

The rows are the registry. A class says by ``examples()`` which instances are tried; a
new file needs no edit here.
"""
