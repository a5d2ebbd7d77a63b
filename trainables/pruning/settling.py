"""Settling: which channel groups must stay dense so that the rest of a plan is provably sound.

A layer may depend on a width in a way that no trace shows: a number in its forward, a scale taken
from a shape. The proof then fails at the first layer that comes out wrong. The groups that lie
nearest to it are kept dense until the proof gets beyond that layer, and those that turn out to be
innocent are given back; then the next failure, until the proof succeeds.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from trainables.errors import InfeasibleError
from trainables.pruning.channels.groups import ChannelGroup, Side

MOST_PROOFS = 200
"""Proofs that may be tried for one plan; a model with more awkward layers is refused."""


class UnsoundError(InfeasibleError):
    """A plan that the proof refuses, and where it went wrong."""

    def __init__(self, message: str, *, near: Sequence[str], place: int) -> None:
        super().__init__(message)
        self.near = tuple(near)
        """Names of layers at which it shows, the likeliest first."""
        self.place = place
        """Layers that came out right before."""


Prove = Callable[[Collection[int]], None]
"""Proves a plan in which the groups of these numbers stay dense; raises `UnsoundError`."""


def settle(
    groups: Mapping[int, ChannelGroup], prove: Prove, *, faults: Mapping[int, str]
) -> dict[int, str]:
    """Numbers of the groups that must stay dense, with the reason; `prove` accepts the others.

    `groups` are those that the plan cuts, by their number, and `faults` are known before. What is
    found is kept small, one group at a time, but it need not be the smallest. Raises
    `UnsoundError` where no group is left, or too many proofs were tried.
    """
    found = {number: reason for number, reason in faults.items() if number in groups}
    trials = _Trials(prove)
    failure = trials.failure(found)
    while failure is not None:
        suspects = nearest(groups, failure.near, without=found)
        if not suspects:
            raise failure
        guilty = _guilty(trials, found, suspects, failure)
        found |= dict.fromkeys(guilty, str(failure))
        failure = trials.failure(found)
    return found


def nearest(
    groups: Mapping[int, ChannelGroup], layers: Sequence[str], *, without: Collection[int]
) -> list[int]:
    """Numbers of all groups but some, those that touch `layers` first, then their neighbours.

    Among equals, groups that a layer reads come before those that it makes.
    """
    left = [number for number in groups if number not in without]
    order: list[int] = []
    reached = set(layers)
    while left:
        near = [n for n in left if not reached.isdisjoint(m.name for m in groups[n].members)]
        near.sort(key=lambda number: not _is_read(groups[number], reached))
        order += near or left  # what no way leads to comes last
        left = [number for number in left if near and number not in near]
        reached.update(member.name for number in near for member in groups[number].members)
    return order


class _Trials:
    def __init__(self, prove: Prove) -> None:
        self._prove = prove
        self._left = MOST_PROOFS

    def failure(self, dense: Collection[int]) -> UnsoundError | None:
        """How the proof fails with these groups dense; `None` where it succeeds."""
        self._left -= 1
        try:
            self._prove(dense)
        except UnsoundError as error:
            if self._left <= 0:
                raise
            return error
        return None

    def gets_beyond(self, place: int, dense: Collection[int]) -> bool:
        failure = self.failure(dense)
        return failure is None or failure.place > place


def _guilty(
    trials: _Trials, found: Collection[int], suspects: Sequence[int], failure: UnsoundError
) -> list[int]:
    """Some of `suspects` with which dense the proof gets beyond where it failed.

    The nearest one alone, or two, four, …; then each is given back that is not needed.
    """
    count = 1
    while count < len(suspects) and not trials.gets_beyond(
        failure.place, {*found, *suspects[:count]}
    ):
        count = min(2 * count, len(suspects))
    guilty = list(suspects[:count])
    for number in reversed(suspects[:count]):
        rest = [other for other in guilty if other != number]
        if rest and trials.gets_beyond(failure.place, {*found, *rest}):
            guilty = rest
    return guilty


def _is_read(group: ChannelGroup, layers: Collection[str]) -> bool:
    return any(m.name in layers and m.side is not Side.OUT for m in group.members)
