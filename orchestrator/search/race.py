"""A race over compute: every rung gets its share of the sweep, cheap ones first."""

from orchestrator.search.field import Field, Room
from orchestrator.search.strategy import GO_ON, Decision, Move, Standing, Verdict
from orchestrator.store.ledger import TrialRecord, TrialState


class Race:
    """Recipes begin at the lowest rung, and the best of each rung are raised to the next.

    A free worker raises a recipe to the highest rung that is due. A rung is due when what was
    spent on trials aiming at it, and what one more costs, is no more than was spent on a rung
    below: so all rungs get the same share, and as many trials go up as the ratio of the rungs'
    whole costs, evaluation included, lets (the promotion form of asynchronous successive halving,
    arXiv 1810.05934, has the same ratio everywhere). Targets climb with the evidence: whatever is
    compared at a rung has come to the end of its schedule there.

    Of a rung's places, one goes to the best of each method that has none above yet, because what
    leads a cheap rung may not lead a dear one; a share goes to recipes that begin there, which
    alone can tell whether the rungs below know anything.
    """

    def __init__(
        self,
        *,
        entry_share: float = 0.25,
        reserve: bool = True,
        families: bool = True,
        floor: float = 0.0,
        ceiling: float = float("inf"),
    ) -> None:
        """`floor` and `ceiling` are the FLOPs between which the space has recipes aim."""
        self._entry_share = entry_share
        self._reserve = reserve
        self._families = families
        self._floor = floor
        self._ceiling = ceiling

    def judge(self, standing: Standing) -> Verdict:
        """Pauses a trial that may not yet be due at the next rung; others train on."""
        if standing.over:
            return GO_ON
        return Verdict(decision=Decision.PAUSE)

    def next_move(self, field: Field, room: Room) -> Move | None:
        """What a free worker does now; None where the budget has no room for anything wanted."""
        rungs = [
            rung
            for rung, level in enumerate(field.levels)
            if self._floor <= level * (1 + 1e-9) and level <= self._ceiling * (1 + 1e-9)
        ]
        blocked = False
        if self._reserve and (move := self._last_climb(field, room, rungs)):
            return move
        for below, rung in reversed(list(zip(rungs, rungs[1:], strict=False))):
            move, train, full = self._wanted(field, below, rung)
            if move is None or field.cost(rung) + full > max(field.cost(r) for r in rungs if r < rung):
                continue
            if room.holds(train):
                return move
            blocked = True
        if blocked:
            return self._fitting(field, room, rungs)
        if not room.holds(field.levels[rungs[0]]):
            return None
        return Move(target_flops=field.levels[rungs[0]])

    def _wanted(self, field: Field, below: int, rung: int) -> tuple[Move | None, float, int]:
        """What the rung would have next, its training FLOPs and its whole cost."""
        level = field.levels[rung]
        fresh = field.full_cost(rung)
        enough = len(field.ended(below)) >= 2
        share = field.entered(rung) + fresh <= self._entry_share * (field.cost(rung) + fresh)
        if late := field.late(rung):
            if share or not field.ready(below):
                trial = field.trial(late[0][2])
                return Move(trial=trial, target_flops=level), level, fresh
        elif share and enough:
            return Move(target_flops=level), level, fresh
        best = self._best(field, below, rung)
        if best is None:
            return None, 0.0, 0
        trial = field.trial(best)
        return (
            _up(trial, level),
            field.train_cost(rung, trial),
            field.full_cost(rung, trial),
        )

    def _best(self, field: Field, below: int, rung: int) -> str | None:
        """The trial to raise: the best of a method that has nothing at the rung, else the best."""
        if self._families:
            firsts = [
                field.ready(below, method)[0]
                for method in field.methods_ready(below)
                if not field.reached(rung, method)
            ]
            leaders = field.ready(below)[:1]
            if firsts and field.ended(rung):
                return min(firsts)[2]
            return leaders[0][2] if leaders else None
        leaders = field.ready(below)[:1]
        return leaders[0][2] if leaders else None

    def _last_climb(self, field: Field, room: Room, rungs: list[int]) -> Move | None:
        """Raises the leader while the budget still holds its climb to the top, if nobody is there."""
        top = rungs[-1]
        if room.flops is None and room.trials is None:
            return None
        if field.ended(top) or any(field.rung(t) == top for t in field.running):
            return None
        leader, at = None, -1
        for rung in reversed(rungs[:-1]):
            if field.ready(rung):
                leader, at = field.trial(field.ready(rung)[0][2]), rung
                break
        if leader is None or any(field.rung(t) > at for t in field.running):
            return None
        last = leader.measurements[-1]
        kept = last.trunk_flops / last.train_flops if last.train_flops else 0.0
        climb = field.train_cost(at + 1, leader)
        for rung in range(at + 2, top + 1):
            climb += field.levels[rung] - kept * field.levels[rung - 1]
        spare = field.levels[at + 1]
        steps = top - at
        short = (room.flops is not None and room.flops < climb + spare) or (
            room.trials is not None and room.trials <= steps
        )
        if not short or not room.holds(field.train_cost(at + 1, leader)):
            return None
        return _up(leader, field.levels[at + 1])

    def _fitting(self, field: Field, room: Room, rungs: list[int]) -> Move | None:
        """The dearest raise that the rest of the budget holds, of a trial that is worth it."""
        for below, rung in reversed(list(zip(rungs, rungs[1:], strict=False))):
            places = field.ready(below)
            if not places:
                continue
            trial = field.trial(places[0][2])
            rank = sum(place < places[0] for place in field.ended(below))
            worth = rank < max(1, len(field.ended(below)) // 2)
            if worth and room.holds(field.train_cost(rung, trial)):
                return _up(trial, field.levels[rung])
        return None


def _up(trial: TrialRecord, level: float) -> Move:
    """A paused trial goes on; the recipe of one that is over is raised to the level."""
    return Move(trial=trial, target_flops=None if trial.state is TrialState.PAUSED else level)
