"""Files and answers from anybody: `virtksm doctor` gives each check an outcome, on one printable line, and no crash."""

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from tests.lab.healthy_host import FILES, HEALTHY, STATUS, URI, write_tree
from tests.lab.hostile_agent import wrong_answers
from virtksm.cli.ask_agent import take_answer
from virtksm.cli.doctor import ASKED_FOR, finding_rows
from virtksm.cli.layout import to_lines
from virtksm.doctor.checks import CHECKS, examine
from virtksm.doctor.facts import Here
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.own import see_agent
from virtksm.errors import VirtksmError
from virtksm.values import replace

MORE_FILES = (
    "proc/50/attr/current",
    "proc/51/status",
    "proc/1٣/status",
    "etc/libvirt/hooks/qemu",
    "etc/libvirt/hooks/qemu.d/virtksm",
    "sys/module/apparmor/parameters/enabled",
    "sys/fs/selinux/enforce",
    "usr/lib/systemd/system/ksmtuned.service",
    "usr/lib/systemd/system/x.wants/ksmtuned.service",
    "etc/tmpfiles.d/a.conf",
    "etc/sysfs.conf",
    "etc/rc.local",
    "etc/cron.d/a",
    "etc/default/qemu-kvm",
    "etc/systemd/system/x.wants/mine.service",
    "etc/systemd/system/mine.service",
    "sys/fs/cgroup/system.slice/momd.service/cgroup.procs",
)
words = st.sampled_from(
    ["[", "]", "-", "0-1", ",", "9" * 25, "kB\n", "MemTotal: ", " / /sys ro - x y rw", "\0", "Name:\t", "Uid:\t0\t0\t",
     "/sys/kernel/mm/ksm/", "run", "advisor_mode ", "echo 0 > ", "w ", " - - - - 0\n", "ExecStart=",
     "${f:virt_check:a:b}",
     "1\n", "include=", "ksm", "٣", STATUS.format(name="ksmtuned", pid=1, uid=0), "50 (x) ", "0 " * 25, "\x1b[2J", "\n"]
)  # fmt: skip
contents = st.lists(words | st.text(max_size=4), max_size=12).map("".join)
trees = st.dictionaries(st.sampled_from([*FILES, *MORE_FILES]), contents | st.none(), max_size=8)


@given(trees)
@example({"proc/uptime": "0.1"})
@example({"sys/devices/system/node/has_memory": "9" * 200 + "["})
@example({"proc/50/comm": "\n", "proc/50/stat": ")" * 50})
def test_any_tree_of_files_gives_each_check_an_outcome_and_no_line_is_forged(changed: Mapping[str, str | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            root = write_tree(Path(folder), **changed)
        except UnicodeEncodeError:  # of a lone surrogate, which no file can be made of here
            return
        findings = examine(replace(HEALTHY, here=Here(Root(str(root)), URI)))
    assert [one.check for one in findings] == [check.name for check in CHECKS]
    for one in findings:
        assert bool(one.remedy) == (one.verdict in ("WARN", "FAIL"))
    lines = to_lines(finding_rows(findings, shows_all=False))
    assert len(lines) <= 2 * len(CHECKS) + 1
    assert all(line.isprintable() for line in lines)


def test_whatever_an_agent_answers_is_understood_or_refused() -> None:
    for _, answer in wrong_answers("status"):
        with suppress(VirtksmError):
            see_agent(take_answer(json.loads(answer), "status", ASKED_FOR))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_text_are_read_all_the_same(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = write_tree(Path(folder))
        for name in ("sys/kernel/mm/ksm/run", "proc/meminfo", "proc/50/status", "proc/50/stat", "proc/50/mountinfo"):
            (root / name).write_bytes(content)
        findings = examine(replace(HEALTHY, here=Here(Root(str(root)), URI)))
    assert all(line.isprintable() for line in to_lines(finding_rows(findings, shows_all=True)))
