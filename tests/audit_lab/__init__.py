"""Attacks for tests of the audit, named by dotted path as a user's own would be."""
