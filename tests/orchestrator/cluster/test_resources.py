"""Where trials run and images are kept."""

import pytest

from orchestrator.cluster.config import ResourcesConfig
from orchestrator.cluster.resources import concurrent_trials, connect, trials_here
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
    assert trials_here(ResourcesConfig(concurrent=7)) == 7


@pytest.mark.parametrize(("cpus", "trials"), [(1, 8), (3, 2), (8, 1), (64, 1)])
def test_else_so_many_run_here_as_have_cpus_and_one_at_least(
    cpus: int, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert trials_here(ResourcesConfig(cpus=cpus)) == trials
    assert trials_here(ResourcesConfig(cpus=cpus, gpus="auto")) == trials


@pytest.mark.parametrize(("gpus", "trials"), [(0.25, 8), (0.5, 4), (1, 2), (2, 1), (4, 1)])
def test_a_trials_share_of_the_gpus_bounds_them(
    gpus: float, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert trials_here(ResourcesConfig(gpus=gpus)) == trials
