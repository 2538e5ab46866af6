"""The one history: every input that passed the scheduler's doors, and the record of each step."""

from __future__ import annotations

from collections.abc import Sequence

from minisgl.core import Finished, Input, Outcome, Plan, StepRecord


class History:
    """Inputs in the order in which they passed the doors, and the records they made.

    The engine is the only writer. Record k is that of step k. What lies before ``first`` has been
    forgotten: the first ``first`` records, and the first ``first_input`` inputs with them.
    """

    def __init__(self) -> None:
        self.first = 0
        self.first_input = 0
        self._inputs: list[Input] = []
        self._records: list[StepRecord] = []
        self._ends: list[int] = []  # inputs that had passed when each record was made

    def __len__(self) -> int:
        """How many records there have been, forgotten ones included."""
        return self.first + len(self._records)

    @property
    def num_inputs(self) -> int:
        """How many inputs there have been, forgotten ones included."""
        return self.first_input + len(self._inputs)

    @property
    def records(self) -> Sequence[StepRecord]:
        """The records that are kept, from ``first`` on."""
        return self._records

    def inputs(self, start: int, end: int) -> Sequence[Input]:
        """Inputs number ``start`` to ``end - 1``."""
        return self._inputs[start - self.first_input : end - self.first_input]

    def inputs_of(self, k: int) -> Sequence[Input]:
        """Inputs that passed since record k - 1 was made, until record k was."""
        before = self._ends[k - self.first - 1] if k > self.first else self.first_input
        return self.inputs(before, self._ends[k - self.first])

    def record(self, k: int) -> StepRecord:
        """The record of step k. Raises IndexError if it is not kept."""
        if not self.first <= k < len(self):
            raise IndexError(f"record {k} was asked, {self.first} to {len(self) - 1} are kept")
        return self._records[k - self.first]

    def add_input(self, item: Input) -> None:
        """Note what passes a door."""
        self._inputs.append(item)

    def add_record(self, record: StepRecord) -> None:
        """Note the record that the inputs so far made."""
        assert record.batch.step == len(self), "records are numbered like steps"
        self._records.append(record)
        self._ends.append(self.num_inputs)

    def end(self, k: int) -> int:
        """How many inputs belong to the moment at which records 0 to k-1 exist.

        Those that made them, and every add and abort before the next commit or outcome.
        """
        end = self._ends[k - self.first - 1] if k > self.first else self.first_input
        while end < self.num_inputs:
            if isinstance(self._inputs[end - self.first_input], Plan | Outcome):
                break
            end += 1
        return end

    def cut(self, k: int) -> History:
        """A history of its own that ends at the moment at which records 0 to k-1 exist."""
        twin = History()
        twin.first, twin.first_input = self.first, self.first_input
        twin._inputs = self._inputs[: self.end(k) - self.first_input]
        twin._records = self._records[: k - self.first]
        twin._ends = self._ends[: k - self.first]
        return twin

    def forget(self, records: int, inputs: int) -> list[int]:
        """Forget all before this record and input; returns requests that were over by then."""
        old = self._records[: records - self.first]
        over = [event.rid for r in old for event in r.events if isinstance(event, Finished)]
        del self._records[: len(old)], self._ends[: len(old)]
        del self._inputs[: inputs - self.first_input]
        self.first, self.first_input = records, inputs
        return over
