"""Which tokens the next step computes: continuous batching, chunked prefill, pre-emption.

Every sequence is tokens of which the first `computed` are in the cache. A step computes some of the rest: of a sequence
that decodes the one last token, of a prompt a chunk. A pre-empted sequence gives its blocks back and starts over with
all that it has so far, sampled tokens included, so that it goes on as if nothing had happened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from noria.inference.cache import BLOCK, BlockPool, chain

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(eq=False)
class Sequence(Generic[Owner]):
    """`owner` is whoever asked. `followers` have the same prompt: they are copied from it when it is computed."""

    owner: Owner
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)  # of its full blocks
    followers: list[Owner] = field(default_factory=list)

    @property
    def waits_for(self) -> int:
        return len(self.tokens) - self.computed


@dataclass(frozen=True)
class Chunk(Generic[Owner]):
    """Compute `count` tokens of the sequence from its `computed` on."""

    sequence: Sequence[Owner]
    count: int

    @property
    def completes(self) -> bool:
        """Whether the sequence's next token can be sampled afterwards."""
        return self.count == self.sequence.waits_for


class Scheduler(Generic[Owner]):
    def __init__(self, pool: BlockPool, max_rows: int, step_tokens: int) -> None:
        self.pool, self.max_rows, self.step_tokens = pool, max_rows, step_tokens
        self.running: list[Sequence[Owner]] = []  # in the order of arrival: the last is the first to be pre-empted
        self.waiting: deque[Sequence[Owner]] = deque()
        self.preemptions = 0

    @property
    def rows(self) -> int:
        return sum(1 + len(sequence.followers) for sequence in self.running)

    def plan(self) -> list[Chunk[Owner]]:
        """Sequences that decode come first, then prompts within the budget of `step_tokens`; blocks are allotted."""
        chunks: list[Chunk[Owner]] = []
        budget = self.step_tokens
        for decodes in (True, False):
            for sequence in list(self.running):
                if sequence not in self.running or (sequence.waits_for == 1) != decodes:
                    continue
                count = 1 if decodes else min(sequence.waits_for, budget)
                if count and self._make_room(sequence, count, chunks):
                    chunks.append(Chunk(sequence, count))
                    budget -= count
            budget = max(budget, BLOCK) if decodes else budget  # prompts get on, however many sequences decode
        while self.waiting and budget > 0 and self.rows < self.max_rows:
            sequence = self.waiting[0]
            if self._joins(sequence):
                continue
            self._reuse(sequence)
            need = -(-(len(sequence.tokens) + 1) // BLOCK) - len(sequence.blocks)
            if need > self.pool.free and self.running:
                self._release(sequence)
                break
            self.running.append(self.waiting.popleft())
            count = min(sequence.waits_for, budget)
            if not self._make_room(sequence, count, chunks):
                break
            chunks.append(Chunk(sequence, count))
            budget -= count
        return chunks

    def done(self, chunk: Chunk[Owner]) -> None:
        """The chunk is in the cache: its full blocks can be found from now on."""
        sequence = chunk.sequence
        sequence.computed += chunk.count
        for place in range(len(sequence.names), sequence.computed // BLOCK):
            before = sequence.names[-1] if sequence.names else b""
            sequence.names.append(chain(before, sequence.tokens[place * BLOCK : (place + 1) * BLOCK]))
            self.pool.name(sequence.blocks[place], sequence.names[-1])

    def fork(self, sequence: Sequence[Owner], owner: Owner) -> tuple[Sequence[Owner], tuple[int, int] | None] | None:
        """A running twin that shares the full blocks, and (source, target) of the block that is to be copied for it.

        None where no block is left; then the twin waits, to find the full blocks again.
        """
        twin = Sequence(owner, list(sequence.tokens), names=list(sequence.names))
        copied = None
        full = sequence.computed // BLOCK
        if sequence.computed % BLOCK:
            target = self.pool.take()
            if target is None:
                twin.names = []
                self.waiting.appendleft(twin)
                return None
            copied = (sequence.blocks[full], target)
        for block in sequence.blocks[:full]:
            self.pool.share(block)
        twin.blocks = sequence.blocks[:full] + ([copied[1]] if copied else [])
        twin.computed = sequence.computed
        self.running.append(twin)
        return twin, copied

    def finish(self, sequence: Sequence[Owner]) -> None:
        self.running.remove(sequence)
        self._release(sequence)

    def drop(self, unwanted: Callable[[Owner], bool]) -> list[Owner]:
        """Take out the owners that are not to go on; a follower takes its sequence over. Which they were."""
        dropped: list[Owner] = []
        for sequence in [*self.running, *self.waiting]:
            owners = [sequence.owner, *sequence.followers]
            gone = [owner for owner in owners if unwanted(owner)]
            if not gone:
                continue
            dropped += gone
            kept = [owner for owner in owners if owner not in gone]
            if kept:
                sequence.owner, sequence.followers = kept[0], kept[1:]
            elif sequence in self.running:
                self.finish(sequence)
            else:
                self.waiting.remove(sequence)
        return dropped

    def clear(self) -> list[Owner]:
        """Drop everything; whose it was."""
        dropped = [*self.running, *self.waiting]
        for sequence in dropped:
            self._release(sequence)
        self.running = []
        self.waiting.clear()
        return [owner for sequence in dropped for owner in (sequence.owner, *sequence.followers)]

    def _joins(self, sequence: Sequence[Owner]) -> bool:
        """Let a prompt that is being computed for another be computed once."""
        for other in self.running:
            if other.waits_for > 1 and other.tokens == sequence.tokens:
                other.followers += [sequence.owner, *sequence.followers]
                self.waiting.popleft()
                return True
        return False

    def _reuse(self, sequence: Sequence[Owner]) -> None:
        """Blocks that hold its first tokens already; the last token is always computed, to sample after it."""
        name = b""
        for place in range((len(sequence.tokens) - 1) // BLOCK):
            name = chain(name, sequence.tokens[place * BLOCK : (place + 1) * BLOCK])
            block = self.pool.find(name)
            if block is None:
                break
            sequence.blocks.append(block)
            sequence.names.append(name)
        sequence.computed = len(sequence.blocks) * BLOCK

    def _make_room(self, sequence: Sequence[Owner], count: int, chunks: list[Chunk[Owner]]) -> bool:
        """Blocks for `count` more tokens; the latest arrivals give way, the sequence itself last of all."""
        while len(sequence.blocks) * BLOCK < sequence.computed + count:
            block = self.pool.take()
            if block is not None:
                sequence.blocks.append(block)
                continue
            victim = self.running[-1]
            self._preempt(victim)
            chunks[:] = [chunk for chunk in chunks if chunk.sequence is not victim]
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence[Owner]) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence[Owner]) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks, sequence.names, sequence.computed = [], [], 0
