"""Ctrl-C ends the service; by its name the last of the files that use it."""

from __future__ import annotations

import socket

import pytest
from running_service import alive

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(420)]


def test_ctrl_c_ends_everything(service):
    known = service.processes()
    assert len(known) > 5
    assert service.stop() == 0
    assert "nothing is left running" in service.output.read_text()
    assert service.processes() == []
    assert not [process for process in known if alive(process)]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", service.port)) != 0
