"""Fixtures of samplers over a stand-in of vLLM's server."""

from __future__ import annotations

import pytest
from vllm_samplers import EOS, sampler_for, tiny
from vllm_stand_in import Engine, StandIn

from swarmgame.inference import vllm as vllm_module


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(vllm_module, "FIRST_DELAY_SECONDS", 0.01)


@pytest.fixture
def serve(tmp_path):
    """Start a server of another model than the policy, and a sampler of the policy: only a push makes them agree."""
    servers = []

    def start(model, *, eos=(EOS,), longest=64, options=None, **engine):
        other = tiny(vocabulary=model.config.vocab_size, seed=99)
        server = StandIn(Engine(other, **engine))
        server.__enter__()
        servers.append(server)
        return sampler_for(model, server.url, tmp_path / "weights", eos=eos, longest=longest, **(options or {})), server

    yield start
    for server in servers:
        server.__exit__()
