"""Checks of virtksm itself: its configuration, its switch, its agent, its folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from virtksm.config.schema import Config
from virtksm.doctor.checks.hook import SOCKET_UNIT, starts_passes
from virtksm.doctor.checks.writers import AGENT_UNIT
from virtksm.doctor.facts import Facts, Here, known
from virtksm.doctor.finding import CannotTell, DoesNotApply, Judgement, failed, info, passed, warned
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.processes import read_users
from virtksm.errors import START_AGENT
from virtksm.text import printable

AGENT_USER = "virtksm"
"""As whom the packaged agent runs."""
RULES_DIRS = ("etc/polkit-1/rules.d", "usr/share/polkit-1/rules.d")
UBUNTUS_SLEEP_MS = 200
KSMTUNEDS_PAGES = (64, 1250)
"""The bounds of its law, where it mostly is."""


def check_configuration(facts: Facts) -> Judgement:
    configuration = facts.configuration
    if isinstance(configuration, Config):
        hidden = _find_hidden(facts.this_machine.root, facts.agents_files)  # another machine has its own
        if hidden:
            path, rights = hidden
            return warned(
                f"the user {AGENT_USER}, as whom the packaged agent runs, cannot read {printable(path)}",
                f"chmod a+{rights} {shlex.quote(printable(path))}",
            )
        return passed(f"policy {configuration.policy}")
    more = f" (and {len(configuration) - 1} more)" if len(configuration) > 1 else ""
    return failed(f"{configuration[0]}{more}", "see all of them with `virtksm config check`")


def check_on(facts: Facts) -> Judgement:
    paused = facts.paused
    if paused is None:
        facts.this_machine  # noqa: B018  # of another one only what was done from here is known
        return passed("`virtksm pause` is not in force")
    if paused.damage:
        return warned(
            f"{paused.damage}: counts as paused", "`virtksm pause` writes it again, `virtksm resume` removes it"
        )
    return info(f"paused since {paused.since}, until `virtksm resume`")


def check_agent(facts: Facts) -> Judgement:
    agent = facts.agent
    if agent is None:
        return _without_agent(facts)
    libvirt, last = agent["libvirt"], agent["last_pass"]
    if not libvirt["answers"]:
        error = f" ({libvirt['error']})" if libvirt["error"] else ""
        silence = f"since {libvirt['silent_since']}, waiting for {libvirt['waiting_for']}{error}"
        return failed(f"it runs, but libvirt does not answer it: {silence}", "systemctl status libvirtd (or virtqemud)")
    if last["outcome"] in ("refused", "held"):
        refused = [f"{one['parameter']}, {one['cause'].replace('_', ' ')}" for one in last["refused"]] or ["earlier"]
        return failed(f"a setting was refused: {refused[0]}", "see `virtksm status`; `virtksm retune` tries again")
    if last["outcome"] == "yielded":
        return warned(
            f"it has yielded to another program that sets KSM{_likely_writer(facts)}",
            "stop that program, then `virtksm retune`",
        )
    return passed(f"{'observes' if last['outcome'] == 'observed' else 'serves'} {agent['uri']}")


def check_agent_boot(facts: Facts) -> Judgement:
    here = facts.this_machine
    unit = here.unit(AGENT_UNIT)
    if facts.known_agent is None:
        raise DoesNotApply("none runs")
    if not here.booted or not unit.is_installed:
        raise DoesNotApply(f"it is not started by {AGENT_UNIT}")
    if unit.is_enabled:
        return passed(f"{AGENT_UNIT} is enabled")
    return warned(f"it runs, and {AGENT_UNIT} is not enabled", f"systemctl enable {AGENT_UNIT}")


def check_agent_permission(facts: Facts) -> Judgement:
    here = facts.this_machine
    if facts.agent_seen and facts.agent_seen["libvirt"]["answers"]:
        return passed("the agent is connected")
    if AGENT_USER not in read_users(here.root):
        raise DoesNotApply(f"there is no user {AGENT_USER}")
    rule = _find_rule(here.root)
    if rule is not None:
        return passed(f"{rule} names the user virtksm")
    return warned(
        "no rule of polkit's names the user virtksm: libvirt may refuse its agent",
        "install 50-virtksm.rules in /etc/polkit-1/rules.d (docs/security.md)",
    )


def check_stranded(facts: Facts) -> Judgement:
    agent = facts.agent
    if agent is None:
        return _stranded_without_agent(facts)
    may_be, worst_percent = agent["stranded"]["possible"], agent["stranded"]["worst_core_percent"]
    if may_be is None:
        raise CannotTell(
            "the agent does not know: no pass yet, and libvirt does not answer",
            "systemctl status libvirtd (or virtqemud)",
        )
    if not may_be:
        return passed("no")
    percent = "an unknown share" if worst_percent is None else f"{worst_percent:.0f} %"
    return failed(
        f"ksmd may take {percent} of a core, and libvirt, which alone can slow it down, does not answer",
        "restart libvirt's daemon; meanwhile as root: echo 0 > /sys/kernel/mm/ksm/run",
    )


def check_folder(facts: Facts) -> Judgement:
    facts.this_machine  # noqa: B018
    if facts.faults:
        return failed(
            facts.faults[0],
            "correct it, or remove it: it is made again (the baseline is then the kernel's present value)",
        )
    known(facts.state)
    return passed(facts.folder)


def _find_hidden(root: Root, files: Iterable[str]) -> tuple[str, str] | None:
    """Return what of these files, and of their folders, is hidden from the agent's user, and the rights it lacks."""
    uid, gid = (read_users(root, file).get(AGENT_USER) for file in ("etc/passwd", "etc/group"))
    if uid is None:
        return None
    folders = sorted({file.rpartition("/")[0] for file in files})
    needed = (*((folder, "rx", 0o5) for folder in folders), *((file, "r", 0o4) for file in files))
    for path, rights, bits in needed:
        status = root.status(path.lstrip("/"))
        if status is not None:
            shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
            if ~status.st_mode >> shift & bits:
                return path, rights
    return None


def _find_rule(root: Root) -> str | None:
    """Return a file of polkit's rules that names the agent's user."""
    doubt = None
    for folder in RULES_DIRS:
        try:
            paths = [f"{folder}/{name}" for name in root.names(folder) if name.endswith(".rules")]
        except CannotTell as error:
            doubt = doubt or error
            continue
        for path in paths:
            if '"virtksm"' in root.text_if_readable(path):
                return f"/{path}"
    if doubt is not None:
        raise doubt
    return None


def _likely_writer(facts: Facts) -> str:
    """Return the likely writer of such values, whatever its name."""
    if not isinstance(facts.here, Here):
        return ""
    pages, sleep_ms = (facts.here.number(name) for name in ("pages_to_scan", "sleep_millisecs"))
    found = f" ({pages} pages every {sleep_ms} ms"
    if sleep_ms == UBUNTUS_SLEEP_MS:
        return f"{found}: so does Ubuntu's qemu-kvm.service)"
    if pages in KSMTUNEDS_PAGES:
        return f"{found}: so do ksmtuned and what follows its law)"
    return f"{found})"


def _without_agent(facts: Facts) -> Judgement:
    if starts_passes(facts.this_machine):
        return info("not running: the hook's pokes start passes")
    remedy = f"{START_AGENT}, or enable --now {SOCKET_UNIT} (docs/guide.md)"
    return warned("not running, and no hook's poke starts a pass: nothing tunes KSM", remedy)


def _stranded_without_agent(facts: Facts) -> Judgement:
    here = facts.this_machine
    if starts_passes(here):
        raise DoesNotApply("no agent: the hook's passes leave KSM as they decide")
    ours = known(facts.state).ownership.get("pages_to_scan")
    pages, sleep_ms = here.number("pages_to_scan"), here.number("sleep_millisecs")
    if ours is not None and ours.holds(pages) and pages and here.number("run") == 1:
        return failed(
            f"no agent runs, and ksmd goes on with its settings: {pages} pages every {sleep_ms} ms",
            f"{START_AGENT}, or `virtksm restore`",
        )
    return passed("no")
