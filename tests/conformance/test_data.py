"""Conformance of data sources: sound examples in a fixed order, and a licence."""

from __future__ import annotations

import pytest
import torch

from exhume import registry

every_source = pytest.mark.parametrize("name", registry.names("data"))


@every_source
def test_a_source_gives_sound_examples_in_a_fixed_order(name, tmp_path):
    for source in registry.find("data", name).examples(tmp_path):
        state = torch.get_rng_state()
        batch, again = source.load(), source.load()
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(batch.inputs, again.inputs)
        assert torch.equal(batch.targets, again.targets)
        assert batch.inputs.dtype == torch.float32
        assert batch.inputs.is_contiguous()
        batch.spec.check(batch.inputs)
        assert float(batch.inputs.std()) > 0
        assert len(batch.targets) == len(batch)
        if batch.targets.is_floating_point():
            assert bool(batch.targets.isfinite().all())
        else:
            assert batch.targets.dtype == torch.int64
            found = batch.targets.unique().tolist()
            assert found == list(range(len(found)))
        pool = source.private_pool(batch)
        assert pool == sorted(set(pool))
        assert set(pool) <= set(range(len(batch)))
        assert pool


@every_source
def test_a_source_states_a_licence(name):
    assert len(registry.find("data", name).licence) > 5
