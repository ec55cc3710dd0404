"""The worlds of the conformance suites, for all other tests."""

from conformance.toys import *  # noqa: F403
