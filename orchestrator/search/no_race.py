"""No race: every trial spends the compute that it aims at."""

from collections.abc import Collection, Mapping

from orchestrator.search.field import Field, Room
from orchestrator.search.strategy import GO_ON, Move, Standing, Verdict


class NoRace:
    """Lets every trial go on."""

    def judge(self, standing: Standing) -> Verdict:
        """Has nothing against any trial."""
        return GO_ON

    def next_move(self, field: Field, room: Room) -> Move | None:
        """The first of the trials that another scheduler left paused, else a new recipe."""
        return Move(trial=next(iter(field.affordable(room)), None))

    def candidates(self, field: Field) -> Collection[str]:
        """None: nobody is raised."""
        return ()

    def hopeless(self, field: Field) -> Mapping[str, str]:
        """None: whoever another scheduler left paused goes on."""
        return {}
