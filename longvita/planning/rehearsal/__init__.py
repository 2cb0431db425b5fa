"""A rehearsal of a training run at full size: chosen ranks by shape, and every file the run would read, looked at."""

from longvita.planning.rehearsal.run import Rehearsal, chosen_ranks, rehearse

__all__ = ["Rehearsal", "chosen_ranks", "rehearse"]
