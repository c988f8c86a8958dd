"""The one running service of the test_serve_* files.

Those files share it in the order of their names; the last one ends it. Up in about two minutes:
the first test that uses it pays for that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Ray reads it once per process, however many clusters the process starts: with another one later, a
# cluster's calls to this driver would be refused, and its actors be ended with it.
os.environ["RAY_AUTH_MODE"] = "disabled"
sys.path.insert(0, str(Path(__file__).parent))
# importlib mode leaves test folders out
sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
sys.path.insert(0, str(Path(__file__).parents[1] / "alerts"))

from running_service import started


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """`jouleserve serve`, ready to answer."""
    with started(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def client(service):
    """OpenAI's own client."""
    import openai

    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60)
