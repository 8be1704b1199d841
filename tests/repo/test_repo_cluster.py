"""The session's cluster: it runs tasks, asks for its token, and its dashboard answers those who have it."""

import os
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.cluster


def test_it_runs_a_task_in_another_process(cluster: Any) -> None:
    import ray

    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()


def test_its_dashboard_wants_the_token(cluster: Any) -> None:
    url = f"http://{cluster.dashboard_url}/api/version"
    bearer = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers=bearer).status_code == 200
