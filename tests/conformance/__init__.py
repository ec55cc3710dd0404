"""What every registered member has to pass, whoever wrote it: one file per kind.

The rows are the registry, packages of one's own included (docs/extending.md). A class
says by ``examples()`` which instances are tried; a new file needs no edit here. The
suites are installed as ``exhume.conformance``, so they import nothing of other tests.
"""
