"""A host on which nothing stands in the way of KSM: a tree of files, and answers. Tests spoil it in one place."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from virtksm.config.schema import Config
from virtksm.doctor.checks.hook import HOOK
from virtksm.doctor.facts import Facts, Here, HookFile
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.libvirt import Guests, GuestSeen, LibvirtSeen
from virtksm.doctor.reading.own import NO_PASS, NONE_SWITCHED, Status
from virtksm.guests.xml import GuestXml
from virtksm.model.snapshot import Guest, KsmState, OtherProcesses, Settings
from virtksm.tuning.ownership import HostState
from virtksm.values import replace

NOW_S = 2_000_000_000.0
URI = "qemu:///system"
GUEST = Guest(uuid="u1", name="web", domain_id=1)
VAULT = Guest(uuid="u2", name="vault", domain_id=2)
HOOK_FILE = HookFile(HOOK, is_executable=True, is_roots=True, changed_at_s=NOW_S - 6000)

STATUS = "Name:\t{name}\nUmask:\t0022\nPid:\t{pid}\nPPid:\t1\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n"
STARTED_TICKS = 100_000
UPTIME_S = 6000.0
"""With 100 ticks a second the daemon is 5,000 s old."""

FILES: Mapping[str, str] = {
    "sys/kernel/mm/ksm/run": "1\n",
    "sys/kernel/mm/ksm/pages_to_scan": "0\n",
    "sys/kernel/mm/ksm/sleep_millisecs": "10000\n",
    "sys/kernel/mm/ksm/merge_across_nodes": "1\n",
    "sys/kernel/mm/ksm/max_page_sharing": "256\n",
    "sys/kernel/mm/ksm/use_zero_pages": "0\n",
    "sys/kernel/mm/ksm/ksm_zero_pages": "0\n",
    "sys/kernel/mm/ksm/pages_shared": "1000\n",
    "sys/kernel/mm/ksm/pages_sharing": "9000\n",
    "sys/kernel/mm/ksm/advisor_mode": "[none] scan-time\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "sys/devices/system/node/has_memory": "0\n",
    "proc/sys/kernel/osrelease": "6.18.0\n",
    "proc/uptime": f"{UPTIME_S} 1.0\n",
    "proc/vmstat": "thp_split_page 0\nthp_underused_split_page 0\n",
    "proc/meminfo": "MemTotal: 1048576 kB\nMemFree: 100000 kB\nMemAvailable: 200000 kB\nBuffers: 10000 kB\n"
    "Cached: 50000 kB\nSwapTotal: 1048576 kB\nSwapFree: 1048576 kB\n",
    "proc/1/status": STATUS.format(name="systemd", pid=1, uid=0),
    "proc/50/status": STATUS.format(name="libvirtd", pid=50, uid=0),
    "proc/50/comm": "libvirtd\n",
    "proc/50/stat": f"50 (libvirtd) S {' '.join(['0'] * 18)} {STARTED_TICKS} 0 0\n",
    "proc/50/mountinfo": "1 0 254:0 / / rw,relatime - ext4 /dev/vda rw\n2 1 0:5 / /sys rw,nosuid - sysfs sysfs rw\n",
    "run/systemd/system/x.conf": "",
    "etc/systemd/system/multi-user.target.wants/virtksm.service": "",
    "etc/systemd/system/multi-user.target.wants/virtksm-ksm.service": "",
    "usr/lib/systemd/system/virtksm.service": "[Unit]\n",
    "usr/lib/systemd/system/virtksm-ksm.service": "[Unit]\n",
    "usr/share/polkit-1/rules.d/50-virtksm.rules": 'subject.user == "virtksm"\n',
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nvdsm:x:36:36::/:/bin/sh\nvirtksm:x:990:990::/:/bin/sh\n",
    "usr/bin/virtksm": "#!/bin/sh\n",
    "etc/tuned/active_profile": "virtual-host\n",
    "usr/lib/tuned/virtual-host/tuned.conf": "[main]\ninclude=throughput\n[sysctl]\nvm.swappiness=10\n",
    "usr/lib/tuned/throughput/tuned.conf": "[main]\nsummary=fast\n",
}


def write_tree(root: Path, **changed: str | None) -> Path:
    """Write a healthy host's files below `root`, but for `changed`, whose None leaves one out; returns `root`.

    Keywords cannot hold slashes: give them as a dictionary, `**{"proc/uptime": "x"}`.
    """
    for name, text in {**FILES, **changed}.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)
    return root


_TREES = tempfile.TemporaryDirectory(prefix="healthy")


def with_files(**changed: str | None) -> Facts:
    """Return healthy facts but for these files; the hook is there, root's and old, whoever runs the test."""
    root = Root(str(write_tree(Path(tempfile.mkdtemp(dir=_TREES.name)), **changed)))
    here = Here(root, URI, clock=lambda: NOW_S, state_age_s=lambda _unit: None)
    here.hooks = [HOOK_FILE]
    return Facts(
        here=here,
        libvirt=LIBVIRT,
        configuration=Config(private_guests=("vault",)),
        paused=None,
        known_agent=AGENT,
        folder="/run/virtksm",
        faults=(),
        state=HostState(),
    )


def with_numbers(**numbers: int | None) -> Facts:
    """Return healthy facts but for these of KSM's numbers."""
    files = {f"sys/kernel/mm/ksm/{name}": number for name, number in numbers.items()}
    return with_files(**{name: None if number is None else f"{number}\n" for name, number in files.items()})


def with_libvirt(**changed: object) -> Facts:
    """Return healthy facts but for these of Libvirt."""
    return replace(HEALTHY, libvirt=replace(LIBVIRT, **changed))


LIBVIRT = LibvirtSeen(
    uri=URI,
    version=9_000_000,
    client_version=9_000_000,
    refused=None,
    ksm=KsmState(settings=Settings(pages_to_scan=0, sleep_millisecs=10_000, merge_across_nodes=1)),
    guests=Guests(
        running=(
            GuestSeen(GUEST, GuestXml(reports_free_pages=True)),
            GuestSeen(VAULT, GuestXml(reports_free_pages=True, is_kept_out=True)),
        ),
        other_processes=OtherProcesses(kib=0, processes=0, unread=0),
    ),
)
AGENT: Status = {
    "uri": URI,
    "libvirt": {"answers": True, "error": None},
    "stranded": {"possible": False, "worst_core_percent": 0.0},
    "last_pass": {**NO_PASS, "outcome": "unchanged"},
    "switched": NONE_SWITCHED,
}
HEALTHY = with_files()
