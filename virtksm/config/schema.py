"""The configuration's keys: one table, from which defaults, validation, conf/virtksm.toml and the documentation follow.

A key is a dataclass field made by `key`, with its unit, range or choices, its meaning and the reason for its default. A
nested dataclass is a TOML table of that name. Pure; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, TypeVar

Value = bool | int | str | tuple[str, ...]

T = TypeVar("T", bound=Value)

KSMTUNEDS = "ksmtuned's own, so that both do the same."


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key: `choices` for texts, `minimum` and `maximum` (inclusive) for integers.

    A text without choices may be any; a group that it names is checked where the configuration is loaded. A list holds
    texts that are not empty. `reason` explains the default.
    """

    default: Value
    meaning: str
    reason: str
    unit: str = ""
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()

    @property
    def range_text(self) -> str:
        """Return the allowed values as text, with the unit."""
        if self.choices:
            return " | ".join(f'"{choice}"' for choice in self.choices)
        if isinstance(self.default, bool):
            return "true | false"
        if isinstance(self.default, str):
            return '"TEXT"'
        if isinstance(self.default, tuple):
            return '["TEXT", ...]'
        return f"{self.minimum}..{self.maximum} {self.unit}".rstrip()


def key(
    default: T,
    meaning: str,
    reason: str,
    *,
    unit: str = "",
    minimum: int | None = None,
    maximum: int | None = None,
    choices: tuple[str, ...] = (),
) -> T:
    """Declare a key of the configuration as a dataclass field."""
    known = Key(
        default=default, meaning=meaning, reason=reason, unit=unit, minimum=minimum, maximum=maximum, choices=choices
    )
    declared: T = field(default=default, metadata={"key": known})
    return declared


@dataclass(frozen=True, slots=True, kw_only=True)
class KsmtunedParams:
    """The keys of ksmtuned.conf, with ksmtuned's own defaults, names in lower case without KSM_."""

    monitor_interval: int = key(
        60, "Time between two adjustments when nothing else happens.", KSMTUNEDS, unit="s", minimum=1, maximum=86400
    )
    sleep_msec: int = key(
        10,
        "Sleep between two scans on a host of 16 GiB; smaller hosts sleep longer, none under 10 ms.",
        KSMTUNEDS,
        unit="ms",
        minimum=0,
        maximum=1_000_000,
    )
    npages_boost: int = key(
        300,
        "Added to the pages to scan at each step while memory is short.",
        KSMTUNEDS,
        unit="pages",
        minimum=0,
        maximum=1_000_000,
    )
    npages_decay: int = key(
        -50,
        "Added (it is negative) at each step while memory is not short but guests hold much of it.",
        KSMTUNEDS,
        unit="pages",
        minimum=-1_000_000,
        maximum=0,
    )
    npages_min: int = key(
        64, "Fewest pages to scan while scanning.", KSMTUNEDS, unit="pages", minimum=1, maximum=1_000_000
    )
    npages_max: int = key(1250, "Most pages to scan.", KSMTUNEDS, unit="pages", minimum=1, maximum=1_000_000)
    thres_coef: int = key(
        20,
        "Free memory below this share of the host counts as short.",
        KSMTUNEDS,
        unit="percent",
        minimum=0,
        maximum=100,
    )
    thres_const: int = key(
        2048,
        "Free memory below this counts as short, if it is more than the share.",
        KSMTUNEDS,
        unit="KiB",
        minimum=0,
        maximum=2**40,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveParams:
    """The keys of the policy `adaptive`."""

    engage: Literal["auto", "always", "never"] = key(
        "auto",
        "When to merge: auto acts when memory is short, or will be once the running guests have grown; "
        "never only observes.",
        "Merging while memory is plenty splits huge pages and makes later writes more expensive.",
        choices=("auto", "always", "never"),
    )
    reserve_percent: int = key(
        20,
        "Memory of the host that should stay available; less counts as short.",
        "ksmtuned's threshold (KSM_THRES_COEF).",
        unit="percent",
        minimum=0,
        maximum=100,
    )
    cpu_percent: int = key(
        100,
        "CPU time of one core that ksmd may use during a full scan; all of it when no memory is available.",
        "A shorter full scan saves memory sooner; between full scans ksmd uses none.",
        unit="percent",
        minimum=1,
        maximum=100,
    )
    settle_s: int = key(
        2,
        "How long memory that has appeared settles before it is scanned.",
        "Scanning a guest that fills its memory slows it and reads pages that will change.",
        unit="s",
        minimum=0,
        maximum=3600,
    )
    merge_across_nodes: Literal["keep", "never", "always"] = key(
        "keep",
        "Whether pages of different NUMA nodes may merge; changed only while nothing is shared.",
        "The administrator's value stays.",
        choices=("keep", "never", "always"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsParams:
    """Where the agent offers its metrics to Prometheus (docs/metrics.md)."""

    listen: str = key(
        "",
        "Address and port at which the agent serves /metrics, such as 127.0.0.1:9876 or [::1]:9876; empty: none.",
        "No port is open unless wanted. It has no password and no encryption: every client may read it.",
    )
    textfile: str = key(
        "",
        "File, NAME.prom in the folder of node_exporter's textfile collector, that the agent keeps up to date; "
        "empty: none.",
        "For hosts that have node_exporter and want no further port.",
    )
    textfile_s: int = key(
        15,
        "Shortest time between two writings of the file.",
        "A usual interval of scrapes.",
        unit="s",
        minimum=1,
        maximum=120,
    )
    guests: int = key(
        50,
        "How many guests have a metric of their own; the rest is one sum.",
        "Each is a time series in every Prometheus that scrapes this host.",
        unit="guests",
        minimum=0,
        maximum=1000,
    )

    @property
    def is_wanted(self) -> bool:
        return bool(self.listen or self.textfile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of virtksm's configuration."""

    policy: Literal["adaptive", "ksmtuned"] = key(
        "adaptive",
        "The control law that decides (docs/policies.md).",
        "adaptive scans new guest memory and then idles; ksmtuned, chosen by `virtksm config import`, scans for ever.",
        choices=("adaptive", "ksmtuned"),
    )
    host: Literal["auto", "local"] = key(
        "auto",
        "Whether libvirt's host is this machine: auto looks at the connection's own URI; local reads guests' processes "
        "here although the URI names a host or a transport.",
        "A host or a transport in a URI usually means another machine.",
        choices=("auto", "local"),
    )
    coalesce_ms: int = key(
        250,
        "Passes begin at least this far apart, so a storm of events costs few; the first event is answered at once.",
        "1,000 events in a second cost a handful of passes.",
        unit="ms",
        minimum=0,
        maximum=60_000,
    )
    on_exit: Literal["restore", "idle", "leave"] = key(
        "restore",
        "KSM's settings when the agent ends: put back as found, ksmd idle, or left as they are.",
        "The host is left as it was before virtksm.",
        choices=("restore", "idle", "leave"),
    )
    on_conflict: Literal["reassert", "yield"] = key(
        "reassert",
        "When another program changes a setting: set it again (3 times in 10 minutes, then yield), or yield at once.",
        "One foreign write should not end the tuning, and a conflict should not last.",
        choices=("reassert", "yield"),
    )
    reconnect_max_ms: int = key(
        1500,
        "Longest wait between two attempts to reach libvirt; shorter ones come first. Raise it for remote hosts.",
        "A local libvirtd is found again within 2 s of its return.",
        unit="ms",
        minimum=100,
        maximum=600_000,
    )
    keepalive_s: int = key(
        10,
        "A connection that was silent for this long is tested, and given up if it stays silent as long again; a reload "
        "changes it from the next connection on.",
        "A hanging libvirtd is then given up after 20 s; testing twice as often costs twice the wake-ups.",
        unit="s",
        minimum=1,
        maximum=3600,
    )
    call_timeout_s: int = key(
        30,
        "A libvirt call that takes longer is given up.",
        "Longer than the 20 s after which keepalive, by its default, gives up the connection.",
        unit="s",
        minimum=1,
        maximum=600,
    )
    status_group: str = key(
        "",
        "A group of users whose members may read the agent's status and history (`virtksm status`), and nothing else.",
        "Without it, only root and the agent's own user may.",
    )
    private_guests: tuple[str, ...] = key(
        (),
        "Guests that KSM must not merge, as shell-style patterns of their names (`tenant-*`, case-sensitive); "
        "the agent names those that can merge all the same.",
        "Only the administrator knows which are private; a domain's metadata can say it, too (docs/guide.md).",
    )
    log_level: Literal["debug", "info", "warning", "error"] = key(
        "info",
        "Lowest level that the agent logs.",
        "One line a pass, and one a change.",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: Literal["auto", "console", "json", "journal"] = key(
        "auto",
        "How the agent logs: auto is console on a terminal, journal under systemd, else json.",
        "Each place gets what it can show or search.",
        choices=("auto", "console", "json", "journal"),
    )
    ksmtuned: KsmtunedParams = field(default_factory=KsmtunedParams)
    adaptive: AdaptiveParams = field(default_factory=AdaptiveParams)
    metrics: MetricsParams = field(default_factory=MetricsParams)


def find_inconsistencies(config: Config) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield (keys, problem, remedy) for values that do not fit together, and for impossible addresses and paths."""
    law = config.ksmtuned
    if law.npages_min > law.npages_max:
        yield (
            ("ksmtuned.npages_min", "ksmtuned.npages_max"),
            f"{law.npages_min} is more than ksmtuned.npages_max, {law.npages_max}",
            "lower npages_min or raise npages_max",
        )
    yield from _find_bad_places(config.metrics)


def _find_bad_places(metrics: MetricsParams) -> Iterator[tuple[tuple[str, ...], str, str]]:
    if metrics.listen:
        from virtksm.config.address import parse_address  # only where there is one

        try:
            parse_address(metrics.listen)
        except ValueError as error:
            yield ("metrics.listen",), str(error), "use ADDRESS:PORT, such as 127.0.0.1:9876 or [::1]:9876"
    path = metrics.textfile
    if path and not (path.startswith("/") and path.endswith(".prom") and path.isprintable()):
        remedy = "use a whole path that ends in .prom, as node_exporter reads no other"
        yield ("metrics.textfile",), f"is {path[:60]!r}", remedy


def keys_of(table: type[Any]) -> dict[str, Key]:
    """Return the keys of one table, in the order of their declaration."""
    return {one.name: one.metadata["key"] for one in fields(table) if "key" in one.metadata}


def tables_of(table: type[Any]) -> dict[str, type[Any]]:
    """Return the nested tables of one table."""
    return {one.name: _factory(one) for one in fields(table) if "key" not in one.metadata}


def all_keys() -> dict[str, Key]:
    """Return every key by its dotted name."""
    known = dict(keys_of(Config))
    for name, table in tables_of(Config).items():
        known.update({f"{name}.{inner}": one for inner, one in keys_of(table).items()})
    return known


def _factory(one: Field[Any]) -> type[Any]:
    assert one.default_factory is not MISSING
    assert isinstance(one.default_factory, type)
    return one.default_factory
