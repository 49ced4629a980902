"""What to do when another writer (ksmtuned, tuned, an administrator's virsh) has changed a setting of ours.

Rules:
1. A change is news once: the same foreign value found again is not reported again.
2. An explicit request (retune, reload) ends whatever we had yielded, and writes.
3. Without a foreign value the settings are ours again: a yield ends.
4. Having yielded, write nothing.
5. `yield`: yield at the first foreign value.
6. `reassert`: write again, but at most REASSERT_LIMIT times in REASSERT_WINDOW_S; then yield, saying so once.

Pure; time is data (CLOCK_BOOTTIME seconds).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from virtksm.model.decision import Triggers
from virtksm.model.report import Foreign
from virtksm.values import replace

REASSERT_LIMIT = 3
REASSERT_WINDOW_S = 600.0

Mode = Literal["reassert", "yield"]


class ConflictState(NamedTuple):
    """An agent's record of other writers; a new agent begins without."""

    reasserted_at_s: tuple[float, ...] = ()
    has_yielded: bool = False
    reported: tuple[Foreign, ...] = ()


class ConflictVerdict(NamedTuple):
    """`news`: foreign values not yet reported. `yields_now`: this pass is the one that yields."""

    may_write: bool
    news: tuple[Foreign, ...] = ()
    yields_now: bool = False
    resumes_now: bool = False


def judge(
    state: ConflictState, foreign: tuple[Foreign, ...], triggers: Triggers, now_s: float, mode: Mode
) -> tuple[ConflictVerdict, ConflictState]:
    """Decide whether this pass may write."""
    news = tuple(value for value in foreign if value not in state.reported)  # rule 1
    if triggers.is_explicit:  # rule 2
        return ConflictVerdict(may_write=True, news=news, resumes_now=state.has_yielded), ConflictState(
            reported=foreign
        )
    if not foreign:  # rule 3
        return ConflictVerdict(may_write=True, resumes_now=state.has_yielded), replace(
            state, has_yielded=False, reported=()
        )
    if state.has_yielded:  # rule 4
        return ConflictVerdict(may_write=False, news=news), replace(state, reported=foreign)
    recent = tuple(at_s for at_s in state.reasserted_at_s if 0 <= now_s - at_s < REASSERT_WINDOW_S)
    if mode == "yield" or len(recent) >= REASSERT_LIMIT:  # rules 5 and 6
        yielded = ConflictState(reasserted_at_s=recent, has_yielded=True, reported=foreign)
        return ConflictVerdict(may_write=False, news=news, yields_now=True), yielded
    reasserted = ConflictState(reasserted_at_s=(*recent, now_s))  # the next foreign value will be a new change
    return ConflictVerdict(may_write=True, news=news), reasserted
