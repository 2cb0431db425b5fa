"""Which sequences of the stream each micro batch of a replica consists of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from longvita.data.packing.balance import StepDivision


@dataclass
class ReplicaSchedule:
    """The sequences that one replica takes, round by round; a round is an optimizer step in training."""

    dp_rank: int
    dp_size: int
    micro_batch_size: int
    round_size: int
    """Sequences that all replicas take in a round."""
    first_sequence: int
    """Sequence of the stream at which the first round starts."""
    division: StepDivision | None
    """Balances the work of the replicas in a round; if None they take micro batches in turn."""
    _round: int = -1
    """Round whose sequences are in `_sequences`; micro batches come in order, so no other is needed."""
    _sequences: list[int] = field(default_factory=list)

    def sequences(self, micro_batch: int) -> list[int]:
        """Return the sequences [micro_batch_size] of this replica's micro batch with this number, from 0."""
        size = self.micro_batch_size
        number, turn = divmod(micro_batch, self.round_size // (self.dp_size * size))
        if number != self._round:
            self._round, self._sequences = number, self._sequences_of_round(number)
        return self._sequences[turn * size : (turn + 1) * size]

    def _sequences_of_round(self, number: int) -> list[int]:
        first = self.first_sequence + number * self.round_size
        sequences = np.arange(first, first + self.round_size)
        if self.division is None or self.dp_size == 1:
            return sequences.reshape(-1, self.dp_size, self.micro_batch_size)[:, self.dp_rank].ravel().tolist()
        return sequences[self.division.replicas(sequences, self.dp_size) == self.dp_rank].tolist()
