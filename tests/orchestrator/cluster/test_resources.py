"""Where trials run and images are kept."""

import pytest

from orchestrator.cluster.config import ResourcesConfig
from orchestrator.cluster.resources import concurrent_trials, connect
from tests.waiting import LIMIT_SECONDS
from trainables.errors import InputError


@pytest.mark.timeout(LIMIT_SECONDS)  # Ray itself would try for ten minutes
@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "ray://[::1]:9"])
def test_a_cluster_that_is_not_there_is_named_at_once(address: str) -> None:
    with pytest.raises(InputError, match="No Ray cluster can be reached at") as caught:
        connect(address)
    assert address in str(caught.value)


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match="'nonsense'"):
        connect("nonsense")


def test_the_environments_address_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(InputError, match="'127.0.0.1:9'"):
        connect(None)


def test_the_config_says_how_many_trials_run_side_by_side() -> None:
    assert concurrent_trials(ResourcesConfig(concurrent=7)) == 7
