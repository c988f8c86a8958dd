"""Which replica a packing router gives a request to, and what it believes of each between reports.

The rule is the simulator's (`policies.sim.kernel`). What it asks for is known exactly there; here
each replica tells it about once a second, and the router adds what it has done since.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STATS_KEY = "jouleserve"  # in a replica's routing stats
STATS_PERIOD_S = 1.0
_LATE_S = 2.0  # a report is at most so old when it is first seen, whatever the clocks say
_KEPT_S = 5.0  # of what the router did itself: more than the age of any report
_KEPT_REQUESTS = 65_536
_LENGTHS_OF = 512.0  # requests that a mean is taken over
_CHARACTERS_PER_TOKEN = 4.0  # of English text, until a report tells the mean length


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One replica as the rule sees it. `pack_seqs` None: it has not said how many it may have."""

    outstanding: float
    waiting_tokens: float
    pack_seqs: int | None = None
    pack_tokens: int | None = None

    @property
    def has_room(self) -> bool:
        """Whether it may have more while others idle."""
        return (
            self.pack_seqs is not None
            and self.outstanding < self.pack_seqs
            and (self.pack_tokens is None or self.waiting_tokens < self.pack_tokens)
        )


def packed_order(candidates: Sequence[Candidate]) -> list[int]:
    """The places of the candidates, the best first: the first that has room, in the order given;
    where none has, the one with the fewest prompt tokens waiting, of those the one with the fewest
    requests. The others follow, in case that one refuses."""
    room = [place for place, one in enumerate(candidates) if one.has_room]
    full = [place for place, one in enumerate(candidates) if not one.has_room]
    full.sort(key=lambda place: (candidates[place].waiting_tokens, candidates[place].outstanding))
    return room + full


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A replica's report to the routers. `rank`: its place in the order of filling; `time_s`: wall
    clock; `num_arrived`: requests so far, which tells two reports apart; `prompt_tokens`: their
    mean length; `prompt_tokens_per_s`: how fast it computes prompts at most."""

    time_s: float
    num_outstanding: float
    waiting_tokens: float
    num_arrived: int = 0
    rank: int | None = None
    pack_seqs: int | None = None
    pack_tokens: int | None = None
    prompt_tokens: float | None = None
    prompt_tokens_per_s: float | None = None

    @classmethod
    def from_stats(cls, stats: Mapping[str, Any] | None) -> Told | None:
        """From `RunningReplica.routing_stats`; None where there is no report, or none to read."""
        found = (stats or {}).get(STATS_KEY)
        try:
            return cls(**found) if found else None
        except TypeError:
            return None


@dataclass(slots=True)
class _Known:
    """What the router believes of one replica. `since`: its own acts of late, (wall clock, requests
    more, tokens more)."""

    told: Told | None = None
    outstanding: float = 0.0
    waiting_tokens: float = 0.0
    at_s: float = 0.0
    since: deque[tuple[float, int, float]] = field(default_factory=deque)

    def act(self, now_s: float, requests: int, tokens: float) -> None:
        self._compute_until(now_s)
        self.outstanding = max(self.outstanding + requests, 0.0)
        self.waiting_tokens = max(self.waiting_tokens + tokens, 0.0)
        self.since.append((now_s, requests, tokens))
        while self.since[0][0] < now_s - _KEPT_S:
            self.since.popleft()

    def hear(self, now_s: float, told: Told) -> None:
        """Begin with a new report, and add what was done since it was made."""
        self.told = told
        self.at_s = min(max(told.time_s, now_s - _LATE_S), now_s)
        self.outstanding, self.waiting_tokens = told.num_outstanding, told.waiting_tokens
        for time_s, requests, tokens in self.since:
            if time_s > self.at_s:
                self._compute_until(time_s)
                self.outstanding = max(self.outstanding + requests, 0.0)
                self.waiting_tokens = max(self.waiting_tokens + tokens, 0.0)
        self._compute_until(now_s)

    def _compute_until(self, now_s: float) -> None:
        """The replica has gone on with the prompts that wait."""
        speed = self.told.prompt_tokens_per_s if self.told is not None else None
        done = (speed or 0.0) * max(now_s - self.at_s, 0.0)
        self.waiting_tokens = max(self.waiting_tokens - done, 0.0)
        self.at_s = max(self.at_s, now_s)

    def candidate(self, now_s: float) -> Candidate:
        self._compute_until(now_s)
        told = self.told
        return Candidate(
            outstanding=self.outstanding,
            waiting_tokens=self.waiting_tokens,
            pack_seqs=told.pack_seqs if told is not None else None,
            pack_tokens=told.pack_tokens if told is not None else None,
        )


class PackedLoads:
    """A packing router's memory, without Ray. Times are wall-clock seconds.

    What it gets wrong (a request that was cancelled on its way, or went elsewhere in the end) is
    gone with the replica's next report.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, _Known] = {}
        self._places: list[tuple[Hashable, _Known]] | None = None  # in the order of filling
        self._given: OrderedDict[str, tuple[Hashable, float]] = OrderedDict()
        self._mean_characters = 0.0
        self._seen = 0.0

    def hear(self, now_s: float, reports: Mapping[Hashable, Told | None]) -> None:
        """The latest report of each replica there is; those that are not named are gone."""
        if self._known.keys() != reports.keys():
            kept = self._known
            self._known = {name: kept.get(name) or _Known(at_s=now_s) for name in reports}
            self._places = None
        for replica, told in reports.items():
            known = self._known[replica]
            if told is not None and told is not known.told:
                known.hear(now_s, told)
                self._places = None

    def order(self, now_s: float) -> list[Hashable] | None:
        """The replicas, the best for the next request first; None where none says what it may
        have."""
        if self._places is None:
            self._places = sorted(self._known.items(), key=lambda one: (_rank(one[1]), str(one[0])))
        places = self._places
        candidates = [known.candidate(now_s) for _, known in places]
        if all(one.pack_seqs is None for one in candidates):
            return None
        return [places[place][0] for place in packed_order(candidates)]

    def give(self, now_s: float, request_id: str, replica: Hashable, characters: float) -> None:
        """A request goes to a replica; asked again for the same one, it goes there instead."""
        before = self._given.pop(request_id, None)
        if before is not None:
            self._act(now_s, before[0], -1, -before[1])
        else:
            self._seen = min(self._seen + 1.0, _LENGTHS_OF)
            self._mean_characters += (characters - self._mean_characters) / self._seen
        tokens = self._tokens(replica, characters)
        self._act(now_s, replica, 1, tokens)
        self._given[request_id] = (replica, tokens)
        while len(self._given) > _KEPT_REQUESTS:
            self._given.popitem(last=False)

    def end(self, now_s: float, request_id: str, replica: Hashable) -> None:
        """A request has ended."""
        given = self._given.pop(request_id, None)
        self._act(now_s, given[0] if given is not None else replica, -1, 0.0)

    def _act(self, now_s: float, replica: Hashable, requests: int, tokens: float) -> None:
        known = self._known.get(replica)
        if known is not None:
            known.act(now_s, requests, tokens)

    def _tokens(self, replica: Hashable, characters: float) -> float:
        """A prompt's tokens: its share of the reported mean length."""
        known = self._known.get(replica)
        mean = known.told.prompt_tokens if known is not None and known.told is not None else None
        if mean is None or self._mean_characters <= 0.0:
            return characters / _CHARACTERS_PER_TOKEN
        return mean * characters / self._mean_characters


def _rank(known: _Known) -> float:
    """Replicas that have not told their place come last."""
    told = known.told
    return float(told.rank) if told is not None and told.rank is not None else float("inf")


def characters_of(request: Any) -> float:
    """How long the text of an OpenAI request is; token ids count as four characters each. 0 where
    there is none."""
    messages = getattr(request, "messages", None)
    if messages is not None:
        return _length([_content(one) for one in messages])
    return _length(getattr(request, "prompt", None))


def _content(message: Any) -> Any:
    if isinstance(message, Mapping):
        return message.get("content")
    return getattr(message, "content", None)


def _length(value: Any) -> float:
    if isinstance(value, str):
        return float(len(value))
    if isinstance(value, int):
        return _CHARACTERS_PER_TOKEN
    if isinstance(value, Mapping):
        return _length(value.get("text"))
    if isinstance(value, Sequence):
        if value and isinstance(value[0], int):
            return _CHARACTERS_PER_TOKEN * len(value)
        return sum(_length(one) for one in value)
    return 0.0
