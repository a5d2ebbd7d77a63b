"""The cluster: how it is reached, how many trials fit, where a node keeps its images."""

import os
import re
import socket
from typing import Any

import ray
import torch
from ray.exceptions import AuthenticationError

from orchestrator.cluster import local_ray
from orchestrator.cluster.config import ResourcesConfig
from trainables.errors import InputError, first_line

_PROBE_SECONDS = 5.0


def connect(address: str | None) -> bool:
    """Joins the cluster at `address`, or starts Ray on this machine; False if it was there already.

    `RAY_ADDRESS`, which Ray sets inside a job, counts as an address. Raises `InputError` when the
    cluster cannot be reached, or Ray cannot be started here.
    """
    if ray.is_initialized():
        return False
    # Ray asks for a choice about what it hides from tasks without GPUs: hide nothing anew.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        local_ray.start(**quiet)
        return True
    try:
        _probe(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, AuthenticationError) as error:
        if isinstance(error, AuthenticationError) or "InvalidAuthToken" in str(error.__cause__):
            raise InputError(
                f"The Ray cluster at {address!r} wants a token and got none or another; set "
                "RAY_AUTH_MODE=token and put the cluster's token where Ray looks for it."
            ) from error
        raise InputError(
            f"No Ray cluster can be reached at {address!r} ({first_line(error)}); start one with "
            "`ray up` or `ray start --head`, or leave ray.address out to run on this machine."
        ) from error
    return True


def trials_here(resources: ResourcesConfig) -> int:
    """How many trials may run side by side as the config says, else on this machine alone.

    One at least: what this machine lacks, a cluster may have.
    """
    if resources.concurrent is not None:
        return resources.concurrent
    fits = (os.cpu_count() or 1) // resources.cpus
    if resources.gpus != "auto" and resources.gpus:
        fits = min(fits, int(torch.cuda.device_count() / resources.gpus))
    return max(1, fits)


def _probe(address: str) -> None:
    """Raises `OSError` at once if nothing listens there; Ray itself tries for many minutes."""
    if named := re.fullmatch(r"(?:ray://)?(?P<host>.+):(?P<port>\d+)", address):
        place = (named["host"].strip("[]"), int(named["port"]))
        socket.create_connection(place, timeout=_PROBE_SECONDS).close()


def concurrent_trials(resources: ResourcesConfig) -> int:
    """How many trials may run side by side: as the config says, else as many as now fit.

    Raises `InputError` when not one fits.
    """
    if resources.concurrent is not None:
        return resources.concurrent
    held = ray.cluster_resources()
    # With `auto` every trial has a share of its own: CPUs bound their number, Tune does the rest.
    needed = 1.0 if resources.gpus == "auto" else resources.gpus
    fits = int(held.get("CPU", 0)) // resources.cpus
    if held.get("GPU", 0) < needed:
        fits = 0
    elif resources.gpus != "auto" and resources.gpus:
        fits = min(fits, int(held.get("GPU", 0) / resources.gpus))
    if fits < 1:
        raise InputError(
            f"A trial takes {resources.cpus} CPUs and {needed:g} GPUs and the cluster has "
            f"{held.get('CPU', 0):g} and {held.get('GPU', 0):g}; lower resources.cpus or "
            "resources.gpus, or set resources.concurrent for a cluster that grows."
        )
    return fits
