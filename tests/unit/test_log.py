"""What the agent's events say to people: a sentence each, short where all is well."""

from collections.abc import MutableMapping
from typing import Any

import pytest

from tests.lab.samples import a_pass, event
from virtksm.agent.log import Reporter
from virtksm.errors import Cause, ConfigError, ConfigFault, SettingsRefused, VirtksmError
from virtksm.host.systemd import Notifier
from virtksm.log_setup import configure
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.report import Foreign, Outcome, PassReport, RestoreReport
from virtksm.model.snapshot import IDLE, KERNEL_DEFAULTS
from virtksm.values import replace

FAILED = VirtksmError("no answer", remedy="systemctl restart libvirtd")


@pytest.fixture
def said() -> list[str]:
    """Have the log at level info taken down: level and sentence."""
    lines: list[str] = []

    def take(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        lines.append(f"{event['level']}: {event['message']}")
        return ""

    configure("info", "json", renderers=[take])
    return lines


def asked(*kinds: Trigger, **changes: Any) -> PassReport:  # noqa: ANN401  # PassReport's own
    return replace(a_pass(), triggers=Triggers(kinds=frozenset(kinds)), **changes)


def test_a_pass_says_what_it_was_for_and_what_ksmd_does(said: list[str]) -> None:
    reporter = Reporter(Notifier({}))

    def passed(report: PassReport) -> str:
        reporter.passed(report, None, 0.0, is_news=True)
        return said[-1]

    reporter.event(event(Trigger.STARTED, "web-4", "booted"))
    assert said == ["info: web-4 started (booted)"]
    assert passed(asked(Trigger.STARTED)) == "info: web-4 started: as told, 400 pages every 10 ms"
    for name in ("a", "b", "c"):
        reporter.event(event(Trigger.STOPPED, name))
    assert said[-1] == "info: c stopped"
    assert passed(asked(Trigger.STOPPED, Trigger.MEMORY_DEVICE)) == (
        "info: memory device, stopped: as told, 400 pages every 10 ms"
    ), "of several events none is named"
    assert passed(asked(Trigger.TIMER)) == "info: as told, 400 pages every 10 ms"
    idle = replace(a_pass().decision, target=IDLE)
    assert passed(asked(Trigger.RETUNE, decision=idle, outcome=Outcome.HELD)).startswith("info: retune: as told (held)")


def test_a_routine_pass_is_said_at_level_debug_alone(said: list[str]) -> None:
    Reporter(Notifier({})).passed(asked(Trigger.TIMER), None, 0.0, is_news=False)
    assert said == []


def test_every_other_event_has_a_sentence_with_its_remedy(said: list[str]) -> None:
    reporter = Reporter(Notifier({}))
    refused = SettingsRefused("denied", parameter="pages_to_scan", cause=Cause.UNKNOWN, remedy="ausearch -m avc")
    reporter.ready("1.0", "qemu:///system")
    reporter.connected("qemu:///system", is_local=True)
    reporter.connected("qemu+ssh://old/system", ["memory_device_size_change"], is_local=False)
    reporter.disconnected("end of file")
    reporter.connect_failed(FAILED, 1.0)
    reporter.passed(
        asked(
            Trigger.TIMER,
            foreign=(Foreign(parameter="pages_to_scan", ours=1, found=2),),
            refusals=(refused,),
            yields_now=True,
            resumes_now=True,
        ),
        None,
        0.0,
        is_news=True,
    )
    reporter.pass_failed(FAILED, Triggers(kinds=frozenset({Trigger.TIMER})))
    reporter.task_crashed("history", RuntimeError("boom"))
    reporter.events_heard(is_heard=False)
    reporter.switched(Trigger.PAUSE)
    reporter.switched(Trigger.RESUME)
    for exposed in (("tenant",), ("tenant",), (), ("tenant",)):
        reporter.guests_exposed(exposed)
    reporter.guest_xml_unreadable(FAILED)
    reporter.history_written("/var/lib/virtksm/local.history.aside-1")
    reporter.history_failed(FAILED)
    reporter.metrics_trouble(FAILED)
    reporter.config_rejected(ConfigError([ConfigFault(file="f", key="k", problem="is no number", remedy="name one")]))
    reporter.config_reloaded()
    reporter.poke_unavailable(FAILED)
    reporter.left("restore", RestoreReport(before=IDLE, after=KERNEL_DEFAULTS, doubted=("sleep_millisecs",)))
    reporter.left("idle", RestoreReport(before=IDLE, after=IDLE, refusals=(refused,)))
    reporter.leaving_failed(FAILED)
    assert said == [
        "info: virtksm 1.0 started for qemu:///system",
        "info: connected to qemu:///system",
        "info: connected to qemu+ssh://old/system, which does not tell of memory_device_size_change",
        "warning: libvirt disconnected (end of file), reconnecting",
        "warning: libvirt is unreachable: no answer: systemctl restart libvirtd",
        "warning: pages_to_scan is 2 in place of 1: another program sets KSM's parameters (ksmtuned, tuned, virsh): "
        "stop it, or stop virtksm",
        "warning: yields to another program: virtksm writes nothing until `virtksm retune` or a reload",
        "info: the other program has stopped, virtksm sets KSM again",
        "error: pages_to_scan was refused: denied: ausearch -m avc",
        "info: as told, 400 pages every 10 ms",
        "error: the pass failed: no answer: systemctl restart libvirtd",
        "error: a task crashed: RuntimeError: boom: this is a fault of virtksm: please report it with these lines; "
        "the agent goes on",
        "error: libvirt's events are not heard any more: systemd's watchdog starts the agent again; else restart it",
        "warning: paused: virtksm scans again after `virtksm resume`",
        "info: no longer paused",
        *(line for line in said if "private guest" in line),
        "warning: guests' XML cannot be read: no answer: systemctl restart libvirtd",
        "warning: the history is unusable and was set aside as /var/lib/virtksm/local.history.aside-1: a new one was "
        "begun; examine it, or remove it",
        "warning: the history cannot be kept: no answer: systemctl restart libvirtd",
        "warning: there are no metrics: no answer: systemctl restart libvirtd",
        "error: f: k: is no number; name one; the old configuration stays in force",
        "info: the configuration was read again",
        "warning: the qemu hook is not heard: no answer: systemctl restart libvirtd",
        "warning: sleep_millisecs gets the kernel's default, as its saved baseline is implausible",
        "info: KSM's settings were given back: 100 pages every 20 ms",
        "error: pages_to_scan was not given back: denied: ausearch -m avc",
        "info: ksmd is idle: 0 pages every 10000 ms",
        "error: KSM's settings stay as they are: no answer: systemctl restart libvirtd",
    ]
    exposures = [line for line in said if line.startswith("warning: private guest tenant can merge: ")]
    assert len(exposures) == 2, "once, and again when it comes back"


def test_that_dirty_rates_are_unknown_is_news_once_a_connection(said: list[str]) -> None:
    reporter = Reporter(Notifier({}))
    unknown = "info: how fast guests' memory changes is not measured: no answer"
    reporter.dirty_rates_unknown(FAILED)
    reporter.dirty_rates_unknown(FAILED)
    assert said == [unknown]
    reporter.connected("qemu:///system", is_local=True)
    reporter.dirty_rates_unknown(FAILED)
    assert said[-1] == unknown
