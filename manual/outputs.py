"""What each command prints with --json: its fields, their types and meanings. docs/json-schema.json is made of it.

A class is an object, its docstring and the texts below its fields are the descriptions. Names are those outside
(virtksm/json_output.py); values that the program prints as they are (a snapshot) are its own classes.
tests/real/test_json_output.py holds what the commands print against it.
"""

from collections.abc import Mapping
from typing import Literal

from virtksm.doctor.finding import Finding, Verdict
from virtksm.guests.headroom import Risk, Room
from virtksm.guests.obstacles import Obstacle
from virtksm.model.current import Origin
from virtksm.model.decision import Pause, Trigger
from virtksm.model.report import Foreign, Outcome
from virtksm.model.snapshot import Settings, Snapshot, Source
from virtksm.trace import Law

Number = int | float | None


class Versioned:
    """An object that a command prints; `schema` changes when a field changes its meaning or goes."""

    schema: Literal[1]


class Sensed:
    """What a pass has sensed. KSM's counters have the names of its files, in pages of `page_bytes`."""

    total_bytes: int
    free_bytes: int
    buffers_bytes: int
    cached_bytes: int
    available_bytes: int | None
    """MemAvailable and what ZFS's cache gives back, within the limit of the guests' control group."""
    guests: int
    guests_unread: int
    """Guests whose memory cannot be read."""
    committed_bytes: int
    """The guests' resident memory."""
    pages_shared: int | None
    pages_sharing: int | None
    pages_unshared: int | None
    pages_volatile: int | None
    full_scans: int | None
    ksm_zero_pages: int | None
    freed_bytes: int | None
    """What huge pages gave back when they were split, by estimate."""
    page_bytes: int
    saved_bytes: int | None
    ksm_run: int | None
    advisor_mode: str | None
    ksmd_cpu_seconds: float | None


class Reasoned:
    """What the policy decided, and why."""

    rule: str
    reason: str
    numbers: Mapping[str, Number]
    """What the rule went by. `adaptive`: `memory_bytes`; the backlog's `settling_bytes`, `new_bytes`,
    `scanned_once_bytes`, `exited_bytes`; `waited_byte_s`, `full_scan_cost_s`, `page_cost_s`, `changed_bytes`
    (rule 2), `merge_ratio` (expected of all memory, were it new), `expected_ratio` (of the backlog), `changed_ratio`,
    `more_full_scans`, `pressure`; where they are sensed,
    `other_processes_bytes`, `other_processes_unread`; during a full scan `full_scan_bytes`, `scanned_bytes`
    and `full_scan_left_s`, estimated where the kernel counts no pages (before 6.6). `ksmtuned`: `total_bytes`,
    `free_bytes`, `committed_bytes`, `thres_bytes`, `sleep_s`, `npages_before`, `npages`. Both: `guests`,
    `guests_unread`."""
    target: Settings
    """null: left as it is."""
    next_pass_s: float | None


class Decision(Reasoned):
    """The decision of a pass."""

    idle: bool
    """Whether ksmd scans nothing."""
    rewriters: list[str]
    """Names of the guests that are to be out of KSM, as they rewrite what merges."""


class Threshold:
    """What would change a decision at the next pass, all else equal."""

    then: str
    """What the policy would do."""
    quantity: str
    """The unit is in its name."""
    value: float
    """The nearest value at which it does; to 1 KiB, a hundredth of a second or one."""
    present: float
    text: str


class AskedDecision(Decision):
    """A decision of a pass that somebody has asked for."""

    thresholds: list[Threshold]


class Refusal:
    """A setting that the kernel or libvirt has refused."""

    parameter: str
    cause: str
    message: str
    """With the remedy."""


class Pass(Versioned):
    """One pass, also in the log (`pass_completed`)."""

    uri: str
    policy: str
    triggers: list[Trigger]
    """What asked for the pass."""
    source: Source
    """Where the guests' memory was read."""
    sensed: Sensed
    decision: Decision
    outcome: Outcome
    """`yielded`: to another writer; `held`: an earlier refusal stands."""
    before: Settings
    """As found."""
    after: Settings
    """As read back."""
    changed: Mapping[str, int]
    """Those of `after` that the pass has changed."""
    refused: list[Refusal]
    foreign: list[Foreign]
    """Values that another program has set."""
    exposed: list[str] | None
    """Private guests that can merge; null for a pass without an agent."""
    warnings: list[str]
    """Sentences, each with its remedy."""
    duration_s: float
    """From the lock to the last read-back."""


class AskedPass(Pass):
    """A pass that somebody has asked for."""

    decision: AskedDecision


class Libvirt:
    """Whether libvirt answers."""

    connected: bool
    answers: bool
    """false while a call has not returned for more than 2 s."""
    silent_since: str | None
    silent_s: float | None
    waiting_for: str | None
    """`a connection`, `open`, `pass` or `close`."""
    error: str | None
    """Why the last attempt or pass failed."""


class Stranded:
    """Whether ksmd may go on scanning while libvirt, which alone can slow it down, is silent."""

    possible: bool | None
    settings: Settings | None
    """As read back last."""
    worst_core_percent: float | None
    """The most that ksmd can take of a core with them, at 7 microseconds a page."""


class Now:
    """KSM and memory at this moment."""

    origin: Origin
    """`local`: this machine's kernel; `last_pass`: of another machine's agent."""
    ksm_run: int | None
    advisor_mode: str | None
    redhat_only_zero_pages: int | None
    """1: zero pages merge, and nothing else does (RHEL 9.9)."""
    settings: Settings
    pages_shared: int | None
    pages_sharing: int | None
    ksm_zero_pages: int | None
    freed_bytes: int | None
    """What huge pages gave back when they were split, by estimate."""
    page_bytes: int
    saved_bytes: int | None
    """`pages_sharing`, `ksm_zero_pages` and `freed_bytes`."""
    saved_percent: float | None
    """Of `committed_bytes`."""
    ksmd_cpu_seconds: float | None
    """Since boot."""
    guests: int | None
    guests_unread: int | None
    committed_bytes: int | None
    """The guests' resident memory."""
    total_bytes: int | None
    available_bytes: int | None


class Ksmd:
    """ksmd's CPU time."""

    cpu_seconds: float | None
    """Since boot."""
    core_percent: float | None
    """Of a core, in the last `over_s` seconds."""
    over_s: float | None


class SavedHour:
    """What was saved in the last hour."""

    step_s: float
    saved_bytes: list[int | None]
    """At the end of each stretch of `step_s` seconds."""
    zero_bytes: list[int | None]
    """What of it were zero pages."""
    freed_bytes: list[int | None]
    """What of it huge pages gave back when they were split, by estimate."""


class Event:
    """An event of a guest."""

    at: str
    kind: Trigger | Literal["unmerged", "merging"]
    domain: str
    uuid: str
    detail: str


class FullScan:
    """How far a full scan is."""

    done_bytes: int | None
    """null before Linux 6.6."""
    total_bytes: int
    """Up to twice the memory, where nobody knows where ksmd's cursor is."""
    left_s: float | None
    """At its pace so far."""


class SwitchedGuest:
    """A guest that was unmerged while it runs, or let merge."""

    name: str
    uuid: str
    at: str
    why: Literal["private", "rewrites", "command"]
    """By `private_enforce`, `exclude_rewriters`, or `virtksm guest`."""


class UnswitchedGuest:
    """A guest that the agent has failed to unmerge, or to have merge again."""

    name: str
    uuid: str
    message: str
    """With the remedy."""


class Switched:
    """The guests that were switched while they run, as far as the agent knows."""

    unmerged: list[SwitchedGuest]
    merging: list[SwitchedGuest]
    """By `virtksm guest merge`: they stay in, whatever else says otherwise."""
    failed: list[UnswitchedGuest]
    rewriters_unknown: str | None
    """Why it is unknown which guests rewrite what merges, with the remedy; null where they are known or not sought."""


class Status(Versioned):
    """A host's KSM now. With an agent nothing is asked of libvirt; without one, what only an agent knows is null."""

    agent: bool | None
    """Whether an agent serves the host; null: this user may not ask, or it is another machine."""
    version: str
    """The agent's; without one this command's."""
    uri: str
    policy: str
    """The agent's; without one the configuration's."""
    libvirt: Libvirt
    full_scan: FullScan | None
    """While one is under way, or a check scan."""
    last_pass: Pass | None
    """The last pass that was no dry run."""
    last_pass_ago_s: float | None
    next_pass_s: float | None
    stranded: Stranded
    paused: bool | None
    """Whether virtksm is paused; null where that is not known, as of another machine that was not paused from here."""
    switched: Switched | None
    now: Now | None
    room_bytes: Room | None
    """As `virtksm headroom` finds it after each pass, but steadied: it falls at once, and rises once it has been higher
    by 2 % of the memory for 10 minutes. null while libvirt is silent, or a guest's XML or maximum is unknown."""
    ksmd: Ksmd
    saved_hour: SavedHour
    events: list[Event]
    """The last 5 of two hours."""
    history_error: str | None
    """Why there is no history."""


class Kernel:
    """/proc/PID/ksm_stat, by its own names and in its own units."""

    ksm_rmap_items: int | None
    ksm_zero_pages: int | None
    ksm_merging_pages: int | None
    ksm_process_profit: int | None
    ksm_merge_any: bool | None
    ksm_mergeable: bool | None


class SurveyedGuest:
    """A running guest; what is not known is null."""

    name: str
    uuid: str
    group: str | None
    """As its metadata declares."""
    memory_bytes: int | None
    maximum_bytes: int | None
    limit_bytes: int | None
    """What `memtune` allows its QEMU, by the lower of hard_limit and soft_limit."""
    rss_bytes: int | None
    mergeable_bytes: int | None
    """What of that may merge."""
    swapped_bytes: int | None
    """Its anonymous memory in swap."""
    merged_bytes: int | None
    unmerged_bytes: int | None
    """Its other resident memory, QEMU's own included."""
    freed_bytes: int | None
    """What its huge pages gave back when they were split, by estimate."""
    saved_bytes: int | None
    """Its share of what is saved, with that."""
    cost_bytes: int | None
    """KSM's bookkeeping for it."""
    profit_bytes: int | None
    """Saved less cost."""
    can_merge: bool | None
    can_merge_text: str
    """The same in words, with what keeps it from merging."""
    obstacles: list[Obstacle] | None
    kernel: Kernel | None


class GuestsHost:
    """The host's own counters."""

    ksm_run: int | None
    pages_shared: int | None
    pages_sharing: int | None
    ksm_zero_pages: int | None
    freed_bytes: int | None
    page_bytes: int
    places_per_page: float | None
    """Places that a shared page serves on average."""
    max_page_sharing: int | None
    """The most that one serves."""
    saved_bytes: int | None
    cost_bytes: int | None
    profit_bytes: int | None
    """general_profit and `freed_bytes`."""


class Process:
    """A process with merged pages that is no guest."""

    pid: int
    name: str
    merging_bytes: int


class LeftOver:
    """What the guests leave of the host's counters."""

    merging_bytes: int
    zero_bytes: int | None
    saved_bytes: int
    cost_bytes: int | None
    processes: list[Process]


class Guests(Versioned):
    """The running guests."""

    uri: str
    source: Source
    guests: list[SurveyedGuest]
    host: GuestsHost
    left_over: LeftOver | None
    mixed_groups: list[list[str | None]]
    """The groups whose guests can merge with one another; null: guests that declare none."""
    notes: list[str]


class NodeRoom:
    """The room on NUMA nodes that guests are bound to."""

    nodes: list[int]
    available_bytes: int
    reserve_bytes: int
    growth_bytes: int
    """What the guests that are bound there may still take."""
    unmerging_bytes: int
    """What unmerging them takes."""
    safe_bytes: int
    """For guests that are bound there, if no others take it."""


class Headroom(Versioned):
    """How much more guest memory fits."""

    uri: str
    source: Source
    ksm_run: int | None
    guests: int
    available_bytes: int
    reserve_bytes: int
    """What the policy keeps free."""
    growth_bytes: int
    """What the running guests may still take."""
    swapped_bytes: int
    """The part of that which is in swap."""
    saved_bytes: int
    merge_ratio: float
    """The share of the guests' memory that KSM saves, 0 to 0.95."""
    room_bytes: Room
    risk: Risk
    nodes: list[NodeRoom]
    """Of NUMA nodes that guests are bound to; all else is of the host as a whole."""
    notes: list[str]


class Doctor(Versioned):
    """The checks of this host's KSM."""

    uri: str
    worst: Verdict
    findings: list[Finding]


class KeptDecision(Reasoned):
    """A decision as the history keeps it."""

    thresholds: list[Threshold]
    is_routine: bool
    wants_dirty_rates: bool
    wants_merged: bool
    wants_zero_pages: bool
    rewriters: list[str]
    """By UUID and domain id."""


class KeptPass:
    """The summary of a pass, a line of a trace; of an earlier version, some fields may lack."""

    kind: Literal["pass"]
    seq: int
    at: str
    """When it ended."""
    triggers: list[Trigger]
    snapshot: Snapshot
    """What it sensed, without guests. `ksm.settings` are those found."""
    decision: KeptDecision
    outcome: str
    after: Settings
    refused: list[str]
    foreign: list[Foreign]
    paused: Pause | None
    """While virtksm was paused."""
    law: Law
    """The policy's name, and the keys of the configuration."""
    state: None
    guests_left_out: int


class Explained:
    """A decision and what its rule means."""

    at: str
    rule_means: str
    # and `pass`, a word that Python does not let be a name here: below


class Explain(Versioned):
    """The last decisions, the oldest first."""

    decisions: list[Explained]


class Merged:
    """What is merged, and whether unmerging fits into memory."""

    pages_shared: int | None
    pages_sharing: int | None
    ksm_zero_pages: int | None
    saved_bytes: int | None
    needed_bytes: int | None
    """What unmerging takes."""
    available_bytes: int
    missing_bytes: int | None
    """0: it fits."""


class Paused(Versioned):
    """Paused, and what is still merged."""

    paused: Literal[True]
    merged: Merged


class Resumed(Versioned):
    """No longer paused."""

    paused: Literal[False]


class Unmerged(Versioned):
    """What is merged, after unmerging or with `--check`."""

    fits: bool
    """Whether unmerging fits into memory."""
    merged: Merged
    ksm_run: int | None
    merge_across_nodes: int | None


class MemoryBackend:
    """One object of QEMU that holds guest memory."""

    name: str
    size_bytes: int | None
    merge: bool
    """What QEMU was told; the kernel may say otherwise."""


class Qemu:
    """What a guest's QEMU says."""

    version: str
    backends: list[MemoryBackend]


class OneGuest(Versioned):
    """One running guest's merging, after the action."""

    uri: str
    name: str
    uuid: str
    obstacles: list[Obstacle]
    taints: list[str] | None
    """Why libvirt marks it as tainted; null before libvirt 7.1."""
    mergeable_bytes: int | None
    """The mappings that the kernel may merge. This and the next: null on another machine, and without root."""
    merged_bytes: int | None
    """What it has merged of them; null before Linux 6.7, too."""
    zero_bytes: int | None
    """The zero pages that it has merged."""
    needed_bytes: int
    """What unmerging takes at most; where the guest's own count is null, of the host's."""
    available_bytes: int
    held_s: float
    """How long its QEMU will stand still while that unmerges, as measured."""
    qemu: Qemu | None
    """null unless it was asked."""


class Verified(Versioned):
    """Whether KSM is certainly off and nothing is merged."""

    verified: bool
    doubts: list[str]
    """Each with its remedy."""
    paused: bool
    since: str | None
    ksm_run: int | None
    advisor_mode: str | None
    settings: Settings
    merged: Merged


class Restored(Versioned):
    """What was given back."""

    action: Literal["restore", "idle"]
    before: Settings
    after: Settings
    changed: Mapping[str, int]
    left: list[str]
    """Parameters that another program has changed since."""
    doubted: list[str]
    """Parameters that got the kernel's default: the saved value was implausible."""
    paused: bool
    """ksmd idles instead, as virtksm is paused."""
    refused: list[Refusal]


class Left(Versioned):
    """Nothing to do, as `on_exit` is `leave`, or the policy only observes."""

    action: Literal["leave"]


class FleetHost:
    """One host of a fleet."""

    host: str
    """As it was named."""
    uri: str
    exit_code: int
    """Of `virtksm -c URI ACTION`, but of `status` 0 where libvirt answers, else 3; 128 and the signal's number where
    one has ended it."""
    answer: Status | Doctor | AskedPass | Paused | Resumed | None
    """What the action prints; null without an answer."""
    error: str | None
    remedy: str | None
    warnings: list[str]
    took_s: float


class Fleet(Versioned):
    """What one command has done on many hosts."""

    action: str
    exit_code: int
    """The highest of the hosts'."""
    hosts: list[FleetHost]
    """In the order in which they were named."""
    notes: list[str]
    """What is not known of another machine, or does not hold there."""


class Waited(Versioned):
    """How the waiting ended."""

    result: Literal["settled", "timed_out", "paused", "ksm_off"]
    reason: str
    """Why, in the agent's words."""
    waited_s: float


class KeyInForce:
    """A key of the configuration, in the key's own unit."""

    value: object
    origin: str
    """The file, or `default`."""
    choices: list[str]
    """What a choice may be; else none."""
    meaning: str


class ConfigFile:
    """A file of the configuration, in the order of reading."""

    path: str
    state: str
    """`read`, `missing`, or `replaced by` another file."""


class ConfigFiles:
    """The files of the configuration."""

    files: list[ConfigFile]


class Version(Versioned):
    """The program's version."""

    version: str


class Recorded(Versioned):
    """What was recorded."""

    file: str
    passes: int
    missed: int


class Drawn(Versioned):
    """What was drawn."""

    output: str
    samples: int
    events: int


class ReplayLaw:
    """A policy and its own keys."""

    policy: str
    config: Mapping[str, object]


class Answer:
    """A policy's answer to a pass."""

    idle: bool
    rule: str
    reason: str
    target: Settings
    next_pass_s: float | None


class ReplayStep:
    """One pass, and both answers to it."""

    law: ReplayLaw | None
    """Where the recorded one has changed."""
    seq: int
    at: str
    taken_s: float
    """CLOCK_BOOTTIME."""
    triggers: list[Trigger]
    recorded: Answer
    replayed: Answer
    differs: bool


class Share:
    """What one side's settings came to."""

    idle_percent: float | None
    pages_per_s: float | None
    """That ksmd was granted at most."""


class ReplaySums:
    """What all passes came to."""

    passes: int
    seconds: float
    differing: int
    began_anew: int
    """How often the policy's state was another version's."""
    recorded: Share
    replayed: Share
    gaps: int
    missed: int
    torn: bool
    """Whether the last line is not whole."""


class Replayed(Versioned):
    """What another policy, or another configuration, would have decided."""

    file: str
    uri: str
    version: str
    began_at: str
    recorded: ReplayLaw
    replayed: ReplayLaw
    steps: list[ReplayStep]
    sums: ReplaySums


Explained.__annotations__["pass"] = KeptPass
Paused.__annotations__["pass"] = Resumed.__annotations__["pass"] = AskedPass

COMMANDS: Mapping[str, object] = {
    "status": Status,
    "guests": Guests,
    "headroom": Headroom,
    "doctor": Doctor,
    "explain": Explain,
    "wait": Waited,
    "retune": AskedPass,
    "pause": Paused,
    "resume": Resumed,
    "restore": Restored | Left,
    "unmerge": Unmerged,
    "guest show": OneGuest,
    "guest unmerge": OneGuest,
    "guest merge": OneGuest,
    "verify-off": Verified,
    "config show": Mapping[str, KeyInForce],
    "config path": ConfigFiles,
    **{f"fleet {action}": Fleet for action in ("status", "retune", "doctor", "pause", "resume")},
    "trace record": Recorded,
    "trace replay": Replayed,
    "trace plot": Drawn,
    "version": Version,
}
"""What each command prints, the whole of it."""
