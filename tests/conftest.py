"""What every test shares."""

from conformance.conftest import same_weights_in_every_run

__all__ = ["same_weights_in_every_run"]
