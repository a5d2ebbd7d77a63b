"""`cluster.yaml` is what `ray up` accepts, and describes the cluster that the README promises."""

from typing import Any

import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.checkout import ROOT


def _written() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` would use it."""
    prepared: dict[str, Any] = prepare_config(_written())
    return prepared


@pytest.fixture
def head(config: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = config["available_node_types"][config["head_node_type"]]
    return node


@pytest.fixture
def workers(config: dict[str, Any]) -> list[dict[str, Any]]:
    nodes = config["available_node_types"]
    return [node for name, node in nodes.items() if name != config["head_node_type"]]


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(config)


def test_rays_check_would_find_a_misspelt_key() -> None:
    misspelt = prepare_config(_written() | {"idle_timeout_minuts": 10})
    with pytest.raises(ValidationError, match="idle_timeout_minuts"):
        validate_config(misspelt)


def test_workers_are_spot_gpus_that_come_and_go(
    config: dict[str, Any], workers: list[dict[str, Any]]
) -> None:
    assert workers
    for node in workers:
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert node["resources"]["GPU"] >= 1
        assert node["min_workers"] == 0
        assert 0 < node["max_workers"] <= config["max_workers"]
    assert config["provider"]["cache_stopped_nodes"] is False, "a spot instance cannot be stopped"


def test_a_trial_fits_every_kind_of_worker(workers: list[dict[str, Any]]) -> None:
    sizes = {(node["resources"]["CPU"], node["resources"]["GPU"]) for node in workers}
    assert len(sizes) == 1


def test_the_head_lasts_and_takes_no_trials(head: dict[str, Any]) -> None:
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0


def test_every_node_may_use_the_bucket(head: dict[str, Any], workers: list[dict[str, Any]]) -> None:
    assert all("IamInstanceProfile" in node["node_config"] for node in [head, *workers])


def test_every_node_installs_this_checkout_at_the_pinned_versions(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/prunetune"] == "."
    [install] = [command for command in config["setup_commands"] if "pip install" in command]
    assert install.startswith("cd ~/prunetune && ")
    assert " -c requirements.lock . " in install
    assert f"ray=={ray.__version__}" in (ROOT / "requirements.lock").read_text().split()
    assert {".git", ".venv", "runs"} <= set(config["rsync_exclude"])


def test_every_node_asks_for_the_same_token(config: dict[str, Any]) -> None:
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])


def test_the_head_scales_the_cluster(config: dict[str, Any]) -> None:
    start = config["head_start_ray_commands"][-1]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
