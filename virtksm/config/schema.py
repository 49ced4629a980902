"""The configuration's keys: one table, from which defaults, validation, conf/virtksm.toml and the documentation follow.

A key is a field of a `table` made by `key`, with its unit, range or choices, its meaning and the reason for its
default. A nested table is a TOML table of that name. Pure; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeVar

Value = bool | int | str | tuple[str, ...]

T = TypeVar("T", bound=Value)

KSMTUNEDS = "ksmtuned's own, so that both do the same."


class Key(NamedTuple):
    """One key: `choices` for texts; `bounds` for integers is (minimum, maximum, unit), both inclusive.

    A text without choices may be any; a group that it names is checked where the configuration is loaded. A list holds
    texts that are not empty, and a truth value needs neither. `reason` explains the default.
    """

    default: Value
    meaning: str
    reason: str
    bounds: tuple[int, int, str] = (0, 0, "")
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
        return "{}..{} {}".format(*self.bounds)


KEYS: dict[type[Any], dict[str, Key]] = {}
"""The keys of each table, in the order of their declaration."""


def key(
    default: T, meaning: str, reason: str, *, bounds: tuple[int, int, str] = (0, 0, ""), choices: tuple[str, ...] = ()
) -> T:
    """Declare a key of the configuration as a field of a `table`, which takes the key's default for the field's."""
    declared: Any = Key(default=default, meaning=meaning, reason=reason, bounds=bounds, choices=choices)
    return declared  # type: ignore[no-any-return]


def table(made: type[Any]) -> type[Any]:
    """Put the keys of a class into KEYS, and their defaults in their place."""
    defaults = made._field_defaults
    KEYS[made] = {name: one for name, one in defaults.items() if isinstance(one, Key)}
    defaults.update({name: one.default for name, one in KEYS[made].items()})
    made.__new__.__defaults__ = tuple(defaults.values())
    return made


@table
class KsmtunedParams(NamedTuple):
    """The keys of ksmtuned.conf, with ksmtuned's own defaults, names in lower case without KSM_."""

    monitor_interval: int = key(60, "Time between two steps without an event.", KSMTUNEDS, bounds=(1, 86400, "s"))
    sleep_msec: int = key(
        10,
        "Sleep between two batches on a host of 16 GiB; smaller hosts sleep longer, none under 10 ms.",
        KSMTUNEDS,
        bounds=(0, 1_000_000, "ms"),
    )
    npages_boost: int = key(
        300, "Pages that each step adds to a batch while memory is short.", KSMTUNEDS, bounds=(0, 1_000_000, "pages")
    )
    npages_decay: int = key(
        -50,
        "Pages (negative) that each step adds to a batch while guests hold much memory, but it is not short.",
        KSMTUNEDS,
        bounds=(-1_000_000, 0, "pages"),
    )
    npages_min: int = key(64, "Smallest batch while scanning.", KSMTUNEDS, bounds=(1, 1_000_000, "pages"))
    npages_max: int = key(1250, "Largest batch.", KSMTUNEDS, bounds=(1, 1_000_000, "pages"))
    thres_coef: int = key(
        20, "Free memory below this share of the host is short.", KSMTUNEDS, bounds=(0, 100, "percent")
    )
    thres_const: int = key(2048, "Free memory below this is short, too.", KSMTUNEDS, bounds=(0, 2**40, "KiB"))


@table
class AdaptiveParams(NamedTuple):
    """The keys of the policies `adaptive` and `observe`."""

    engage: Literal["auto", "short", "always", "never"] = key(
        "auto",
        "When to merge. short: while memory is short; auto: also while the guests can make it short by growing; "
        "never: scan nothing.",
        "Merging while memory is plenty splits huge pages and makes later writes more expensive.",
        choices=("auto", "short", "always", "never"),
    )
    reserve_percent: int = key(
        20,
        "Available memory below this share of the host is short.",
        "It is the default of ksmtuned's KSM_THRES_COEF.",
        bounds=(0, 100, "percent"),
    )
    cpu_percent: int = key(
        100,
        "CPU time of one core that ksmd may use during a full scan; max_cpu_percent when no memory is available.",
        "A shorter full scan saves memory sooner; between full scans ksmd uses none.",
        bounds=(1, 100, "percent"),
    )
    max_cpu_percent: int = key(
        0,
        "The same at most, however short memory is and whatever cpu_percent says. 0: a quarter of the host's CPUs.",
        "ksmd is one thread: a whole core from four CPUs on, half a core of two.",
        bounds=(0, 100, "percent"),
    )
    settle_s: int = key(
        2,
        "How long new memory settles before it is scanned.",
        "Scanning a guest that fills its memory slows it and reads pages that will change.",
        bounds=(0, 3600, "s"),
    )
    merge_across_nodes: Literal["keep", "never", "always"] = key(
        "keep",
        "Whether pages of different NUMA nodes may merge; changed only while nothing is merged.",
        "The administrator's value stays.",
        choices=("keep", "never", "always"),
    )
    exclude_rewriters: bool = key(
        default=False,
        meaning="Whether the agent unmerges a guest that keeps rewriting what merges, for a day (docs/policies.md).",
        reason="Unmerging needs memory, holds the guest for seconds a GiB, and libvirt marks the guest as tainted.",
    )


@table
class MetricsParams(NamedTuple):
    """Where the agent offers its metrics to Prometheus (docs/metrics.md)."""

    listen: str = key(
        "",
        "Address and port of /metrics, such as 127.0.0.1:9876 or [::1]:9876; empty: none.",
        "No port is open unless wanted. It has no password and no encryption: every client may read it.",
    )
    textfile: str = key(
        "",
        "NAME.prom in the folder of node_exporter's textfile collector; empty: none.",
        "For hosts that have node_exporter and want no further port.",
    )
    textfile_s: int = key(
        15, "Shortest time between two writings of the file.", "A usual scrape interval.", bounds=(1, 60, "s")
    )
    guests: int = key(
        50,
        "How many guests have metrics of their own; the rest is one sum.",
        "Each is a time series in every Prometheus that scrapes this host.",
        bounds=(0, 1000, "guests"),
    )

    @property
    def is_wanted(self) -> bool:
        return bool(self.listen or self.textfile)


@table
class Config(NamedTuple):
    """All of virtksm's configuration."""

    policy: Literal["adaptive", "ksmtuned", "observe"] = key(
        "adaptive",
        "adaptive scans new guest memory and then idles; ksmtuned reproduces ksmtuned; observe sets nothing, and says "
        "what adaptive would do (docs/policies.md).",
        "adaptive uses next to no CPU time once guest memory has been scanned.",
        choices=("adaptive", "ksmtuned", "observe"),
    )
    host: Literal["auto", "local"] = key(
        "auto",
        "Where libvirt's host is. auto: the connection's URI says it; local: this machine, unless it names another.",
        "A host or a transport in a URI usually means another machine.",
        choices=("auto", "local"),
    )
    coalesce_ms: int = key(
        250,
        "Shortest time between two passes; the first event is answered at once.",
        "A burst of 1000 events causes a handful of passes.",
        bounds=(0, 60_000, "ms"),
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
        "Longest wait between two attempts to reach libvirt. Raise it for remote hosts.",
        "A local libvirtd is found again within 2 s of its return.",
        bounds=(100, 600_000, "ms"),
    )
    keepalive_s: int = key(
        10,
        "A connection silent for this long is tested, and closed after as long again. "
        "New values are for new connections.",
        "A hanging libvirtd is given up after 20 s; testing twice as often costs twice the wake-ups.",
        bounds=(1, 3600, "s"),
    )
    call_timeout_s: int = key(
        30,
        "A libvirt call that takes longer is given up.",
        "Longer than the 20 s after which keepalive, by its default, closes the connection.",
        bounds=(1, 600, "s"),
    )
    status_group: str = key(
        "",
        "Members of this group may read the agent's status and history, and do nothing else.",
        "Without it, only root and the agent's own user may.",
    )
    private_guests: tuple[str, ...] = key(
        (),
        "Guests that KSM must not merge: patterns of names (`tenant-*`, case-sensitive). `!` says which are not; the "
        'last pattern that matches decides: `["*", "!build-*"]`.',
        "Only the administrator knows which are private; a domain's metadata can say it, too (docs/guide.md).",
    )
    private_enforce: Literal["report", "unmerge"] = key(
        "report",
        "What the agent does with a private guest that can merge: name it, or also unmerge it while it runs, by QEMU's "
        "monitor (docs/guide.md). Policy observe changes nothing, and takes only report.",
        "libvirt marks a guest that was unmerged as tainted, and the right to do it is as good as root over the guest.",
        choices=("report", "unmerge"),
    )
    log_level: Literal["debug", "info", "warning", "error"] = key(
        "info",
        "Lowest level that the agent logs.",
        "One line for each change.",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: Literal["auto", "console", "json", "journal"] = key(
        "auto",
        "How the agent logs. auto: console on a terminal, journal under systemd, else json.",
        "Each place gets what it can show or search.",
        choices=("auto", "console", "json", "journal"),
    )
    ksmtuned: KsmtunedParams = KsmtunedParams()
    adaptive: AdaptiveParams = AdaptiveParams()
    metrics: MetricsParams = MetricsParams()

    @property
    def only_observes(self) -> bool:
        """Whether KSM's settings are others' altogether."""
        return self.policy == "observe"


def find_inconsistencies(config: Config) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield (keys, problem, remedy) for values that do not fit together, and for impossible addresses and paths."""
    law = config.ksmtuned
    if law.npages_min > law.npages_max:
        yield (
            ("ksmtuned.npages_min", "ksmtuned.npages_max"),
            f"{law.npages_min} is more than ksmtuned.npages_max, {law.npages_max}",
            "lower npages_min or raise npages_max",
        )
    if config.only_observes and config.private_enforce == "unmerge":
        yield (
            ("private_enforce", "policy"),
            'is "unmerge", and policy is "observe", which changes nothing',
            'set private_enforce = "report", or another policy (adaptive.engage = "never" scans nothing)',
        )
    yield from _find_bad_places(config.metrics)


def _find_bad_places(metrics: MetricsParams) -> Iterator[tuple[tuple[str, ...], str, str]]:
    if metrics.listen:
        try:
            parse_address(metrics.listen)
        except ValueError as error:
            yield ("metrics.listen",), str(error), "use ADDRESS:PORT, such as 127.0.0.1:9876 or [::1]:9876"
    path = metrics.textfile
    if path and not (path.startswith("/") and path.endswith(".prom") and path.isprintable()):
        remedy = "use a whole path that ends in .prom, as node_exporter reads no other"
        yield ("metrics.textfile",), f"is {path[:60]!r}", remedy


def parse_address(text: str) -> tuple[str, int]:
    """Return the address (IPv4 or IPv6) and the port of "127.0.0.1:9876" or "[::1]:9876"; raises ValueError.

    Host names are not resolved.
    """
    import ipaddress  # only where an address is configured
    import re

    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]{1,45})\]|([0-9.]{1,15})):([0-9]{1,5})", text)
    if found is None:
        raise ValueError(f"is {text[:60]!r}, no address with a port")
    address, port = found[1] or found[2], int(found[3])
    try:
        known = ipaddress.IPv6Address(address) if found[1] else ipaddress.IPv4Address(address)
    except ValueError:
        raise ValueError(f"is {text!r}, whose address is none") from None
    if not 1 <= port <= 65_535:
        raise ValueError(f"is {text!r}, whose port is none")
    return str(known), port


def keys_of(table: type[Any]) -> dict[str, Key]:
    """Return the keys of one table, in the order of their declaration."""
    return KEYS[table]


def tables_of(table: type[Any]) -> dict[str, type[Any]]:
    """Return the nested tables of one table."""
    return {name: type(one) for name, one in table._field_defaults.items() if name not in KEYS[table]}


def all_keys() -> dict[str, Key]:
    """Return every key by its dotted name."""
    known = dict(keys_of(Config))
    for name, table in tables_of(Config).items():
        known.update({f"{name}.{inner}": one for inner, one in keys_of(table).items()})
    return known


def value_of(config: Config, dotted: str) -> Value:
    """Return a key's value."""
    place: object = config
    for part in dotted.split("."):
        place = getattr(place, part)
    assert isinstance(place, int | str | tuple)
    return place
