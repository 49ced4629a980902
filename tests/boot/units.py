"""What virtksm's units and polkit rules promise, claim by claim, tried in a booted container on the real kernel.

virtksm is installed by the lines of docs/install.md.
"""

import os
import pwd
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.boot.inside import (
    BASELINE,
    CHECKOUT,
    COMMON_MIB,
    CONFIG,
    HOOK,
    KSM,
    claim,
    complaints,
    doctor,
    guest_xml,
    heard,
    is_idle,
    ksm,
    libvirt_daemon,
    libvirt_sockets,
    log,
    main_pid,
    merge_two,
    owner_of,
    report,
    retune,
    run,
    settings,
    shown,
    start_guest,
    wait,
    wait_logged,
)
from tests.lab.ports import free_port

INSTALLED = Path("/opt/virtksm")
RULES = Path("/etc/polkit-1/rules.d")
FINE_GRAINED = "50-virtksm-fine-grained.rules"
MONITOR = "40-virtksm-monitor.rules"
NEEDED_BY = {
    "org.libvirt.unix.manage": ("uri",),
    "org.libvirt.api.connect.getattr": ("uri",),
    "org.libvirt.api.connect.read": ("node-memory-tune",),
    "org.libvirt.api.connect.write": ("node-memory-tune", "--shm-sleep-millisecs", "10000"),
    "org.libvirt.api.connect.search-domains": ("list",),
    "org.libvirt.api.domain.getattr": ("domid", "boot1"),
    "org.libvirt.api.domain.read": ("dumpxml", "boot1"),
}
"""What the rules grant, and a virsh command of the agent's calls that fails without it."""
ASKS_OTHER_DRIVERS = (
    ("pool-create-as", "run", "dir", "--target", "/run"),
    ("nwfilter-list",),
    ("net-list",),
    ("pool-list",),
    ("nodedev-list",),
    ("secret-list",),
)
"""What the monolithic daemon serves, and each of the modular daemons a part of."""
TEXTFILE = Path("/var/lib/virtksm/virtksm.prom")
ADDRESS = f"127.0.0.1:{free_port()}"
"""The container has this machine's network."""
METRICS = f"""\
[metrics]
listen = "{ADDRESS}"
textfile = "{TEXTFILE}"
textfile_s = 1
"""
READS_ALL = """\
[Service]
AmbientCapabilities=CAP_DAC_READ_SEARCH
CapabilityBoundingSet=CAP_DAC_READ_SEARCH
"""
WATCHED = """\
[Service]
WatchdogSec=6
"""


def install_rules(name: str) -> None:
    """Leave none but this rules file of ours ("" is none at all), and have polkit read it."""
    write_rules((INSTALLED / "conf" / "polkit" / name).read_text(encoding="utf-8") if name else "")


def write_rules(text: str) -> None:
    (RULES / "50-virtksm.rules").write_text(text, encoding="utf-8")
    run("systemctl", "reset-failed", "polkit.service")  # or systemd finds it restarted too often
    run("systemctl", "restart", "polkit.service")


def as_virtksm(*virsh: str, denied: bool = False) -> str:
    return run("virsh", "--connect", "qemu:///system", *virsh, fails=denied, user="virtksm")


# --- the claims, in this order ---------------------------------------------------------------------------------------


def installed() -> None:
    """the lines of docs/install.md install it, switch KSM on and start the agent"""
    copy_checkout()
    for name, value in {"run": 0, **BASELINE}.items():
        (KSM / name).write_text(str(value), encoding="ascii")
    document = (INSTALLED / "docs" / "install.md").read_text(encoding="utf-8")
    lines = document.partition("## From a checkout")[2].split("```")[1]
    drop_in = Path("/etc/virtksm/conf.d/50-boot.toml")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(CONFIG, encoding="utf-8")
    said = subprocess.run(
        ["/bin/bash", "-x"],
        input=lines,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=INSTALLED,
    )
    claim(said.returncode == 0, said.stdout)
    claim(ksm("run") == 1, "KSM is off")
    claim(shown("virtksm.service", "ActiveState") == "active", log())
    for unit in ("virtksm.service", "virtksm-ksm.service"):
        run("systemctl", "is-enabled", unit)
        run("systemctl", "is-active", unit)


def copy_checkout() -> None:
    """Bring the checkout's files up to date in the root, which may have been built from an older one."""
    names = run("git", "-c", "safe.directory=*", "-C", str(CHECKOUT), "ls-files", "-co", "--exclude-standard", "-z")
    for name in filter(None, names.split("\0")):
        if (CHECKOUT / name).is_file():
            (INSTALLED / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, INSTALLED / name)


def unprivileged() -> None:
    """the agent runs as virtksm, in no other group, without any capability or network"""
    status = Path(f"/proc/{main_pid()}/status").read_text(encoding="ascii")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    account = pwd.getpwnam("virtksm")
    claim(set(facts["Uid"].split()) == {str(account.pw_uid)}, facts["Uid"])
    claim(set(facts["Gid"].split()) | set(facts["Groups"].split()) == {str(account.pw_gid)}, facts["Groups"])
    claim(not any(int(facts[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")), status)
    claim((facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2"), status)
    devices = Path(f"/proc/{main_pid()}/net/dev").read_text(encoding="ascii")
    claim(re.findall(r"^ *(\S+):", devices, re.MULTILINE) == ["lo"], devices)


def tunes() -> None:
    """two guests start, and their common pages are merged; then it idles"""
    wait_logged("libvirt_connected", "")
    wait(is_idle, "being idle")
    claim("root" not in map(owner_of, merge_two()), "guests run as root here")


def reads_guests() -> None:
    """it reads the guests' memory, KSM's counters and switch without any right"""
    report = retune()
    claim((report["source"], report["sensed"]["guests"]) == ("local", 2), report)
    claim(report["sensed"]["guests_unread"] == 0, report)
    claim(report["sensed"]["committed_bytes"] > 2 * COMMON_MIB << 20, report)
    unknown = [name for name, value in report["sensed"].items() if value is None]
    claim(unknown == ["ksmd_cpu_seconds"], unknown)  # ksmd is outside the container


def reads_no_more() -> None:
    """of a guest's process the user may read cmdline and statm, not its memory or per-process KSM statistics"""
    [pid] = re.findall(r"\d+", Path("/run/libvirt/qemu/boot1.pid").read_text(encoding="ascii"))
    for name in ("cmdline", "statm", "stat"):
        run("cat", f"/proc/{pid}/{name}", user="virtksm")
    for name in ("ksm_stat", "ksm_merging_pages", "smaps", "environ", "maps"):
        run("cat", f"/proc/{pid}/{name}", user="virtksm", fails=True)


def diagnoses() -> None:
    """`virtksm doctor` finds nothing in the way, for root and for the agent's user, and a ksmtuned that is enabled"""
    for user in ("", "virtksm"):
        wrong = complaints(doctor(user))
        claim(not wrong, wrong)
    unit = Path("/usr/local/lib/systemd/system/ksmtuned.service")
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n", encoding="ascii")
    for action, verdict in (("enable", "WARN"), ("mask", "PASS"), ("unmask", "WARN"), ("disable", "PASS")):
        run("systemctl", action, unit.name)
        claim(doctor()["ksmtuned"] == verdict, f"after {action}: {doctor()['ksmtuned']}")
    unit.unlink()


def poked() -> None:
    """the qemu hook's FIFO is there, root writes to it, and a pass follows"""
    run("install", "-D", "-m", "755", str(INSTALLED / "hooks/virtksm"), str(HOOK))
    seen = log()
    run(str(HOOK), "boot1", "started", "begin", "-")
    wait_logged("pass_completed.*poke", seen)


def survives_libvirt() -> None:
    """libvirt's daemon restarted: the agent stays, connects again and runs a pass"""
    pid, seen = main_pid(), log()
    run("systemctl", "restart", f"{libvirt_daemon()}.service")
    wait_logged("libvirt_connected", seen)
    wait_logged("pass_completed.*connected", seen)
    claim(main_pid() == pid, "the agent was restarted")
    claim(retune()["sensed"]["guests"] == 2, "a guest was lost")


def needs_no_libvirt() -> None:
    """stopped with libvirt, the agent gives back before it; started, it waits; a socket has the daemon started"""
    daemon = libvirt_daemon()
    service, sockets = f"{daemon}.service", libvirt_sockets(daemon)
    run("systemctl", "stop", "virtksm.service", *sockets, service)
    claim(settings() == BASELINE, settings())
    seen = log()
    run("systemctl", "start", "virtksm.service")
    wait_logged("libvirt_unreachable", seen)
    pid = main_pid()
    run("systemctl", "start", *sockets)
    wait_logged("pass_completed.*connected", seen)
    claim(shown(service, "ActiveState") == "active", "the daemon was not started")
    claim(main_pid() == pid, "the agent was restarted")
    run("systemctl", "stop", "virtksm.service", service)
    seen = log()
    run("systemctl", "start", "virtksm.service")
    wait(lambda: shown(service, "ActiveState") == "active", "the daemon")
    wait_logged("pass_completed.*connected", seen)
    claim(retune()["sensed"]["guests"] == 2, "a guest was lost")


def tells_metrics() -> None:
    """metrics: the file needs nothing; the port conf/prometheus/listen.conf; savings by guest CAP_DAC_READ_SEARCH"""
    config = Path("/etc/virtksm/conf.d/60-metrics.toml")
    config.write_text(METRICS, encoding="utf-8")
    seen = log()
    run("systemctl", "reload", "virtksm.service")
    wait_logged("metrics_unavailable.*metrics.listen", seen)
    wait(lambda: TEXTFILE.exists() and "\nvirtksm_guests 2.0\n" in TEXTFILE.read_text(encoding="utf-8"), "the file")
    claim((TEXTFILE.owner(), TEXTFILE.stat().st_mode & 0o777) == ("virtksm", 0o644), TEXTFILE.stat())
    drop_ins = Path("/run/systemd/system/virtksm.service.d")
    drop_ins.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(INSTALLED / "conf" / "prometheus" / "listen.conf", drop_ins / "listen.conf")
    restart_and_wait_for_metrics("virtksm_guests_unaccounted 2.0")
    (drop_ins / "guests.conf").write_text(READS_ALL, encoding="utf-8")
    restart_and_wait_for_metrics("virtksm_guests_unaccounted 0.0")
    for path in (config, drop_ins / "listen.conf", drop_ins / "guests.conf"):
        path.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "virtksm.service")
    claim(not TEXTFILE.exists(), "the file is still there")
    wait(is_idle, "being idle")


def restart_and_wait_for_metrics(line: str) -> None:
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "virtksm.service")
    wait(lambda: f"\n{line}\n" in metrics(), f"{line} among the metrics")


def metrics() -> str:
    """Return what the agent serves, nothing where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=10) as answer:
            return str(answer.read().decode("utf-8"))
    except OSError:
        return ""


def restores_when_killed() -> None:
    """SIGKILL: the unit gives the baseline back, and starts the agent again"""
    comes_back_after(lambda: os.kill(main_pid(), signal.SIGKILL), "signal")


def restores_when_wedged() -> None:
    """SIGSTOP: the watchdog ends the agent, the unit gives the baseline back and starts it again"""
    drop_in = Path("/run/systemd/system/virtksm.service.d/watchdog.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(WATCHED, encoding="ascii")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "virtksm.service")
    wait(is_idle, "being idle")
    comes_back_after(lambda: os.kill(main_pid(), signal.SIGSTOP), "watchdog")
    drop_in.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "virtksm.service")


def comes_back_after(harm: Callable[[], None], result: str) -> None:
    wait(is_idle, "being idle")
    pid = main_pid()
    harm()
    wait(lambda: settings() == BASELINE, "the baseline")
    claim(shown("virtksm.service", "Result") == result, shown("virtksm.service", "Result"))
    wait(lambda: main_pid() not in (0, pid), "another agent")
    wait(is_idle, "being idle again")
    claim(retune()["sensed"]["guests"] == 2, "a guest was lost")


def leaves_no_strangers() -> None:
    """root's own commands, with and without an agent, leave nothing that the agent cannot use"""
    run("virtksm", "retune", "--direct")
    run("systemctl", "stop", "virtksm.service")
    run("virtksm", "retune")
    run("virtksm", "restore")
    claim(settings() == BASELINE, settings())
    run("systemctl", "start", "virtksm.service")
    wait(is_idle, "being idle")
    strangers = [str(path) for path in Path("/run/virtksm/agent").iterdir() if path.owner() != "virtksm"]
    claim(not strangers, strangers)


def proves_off() -> None:
    """`virtksm pause`, `unmerge` and `verify-off` prove that KSM is off; switching it on waits for `virtksm resume`"""
    said = run("virtksm", "pause")
    claim("virtksm unmerge" in said, said)
    run("virtksm", "verify-off", fails=True)
    run("virtksm", "unmerge", "--check")
    run("virtksm", "unmerge")
    run("virtksm", "verify-off")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(ksm("run") != 1 and ksm("pages_sharing") == 0, f"run {ksm('run')}, {ksm('pages_sharing')} pages sharing")
    run("virtksm", "resume")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(ksm("run") == 1, f"run {ksm('run')}")
    retune()
    wait(lambda: ksm("pages_sharing") > 0, "guests to merge again")


def changes_nodes() -> None:
    """`virtksm unmerge --merge-across-nodes` unmerges, sets it through libvirt and has guests merge again"""
    for wanted, value in (("never", 0), ("always", 1)):
        claim(ksm("pages_sharing") > 0, "nothing is merged")
        said = run("virtksm", "unmerge", "--merge-across-nodes", wanted)
        claim((ksm("merge_across_nodes"), ksm("run")) == (value, 1), said)
        wait(lambda: ksm("pages_sharing") > 0, "guests to merge again")


def sets_zero_pages() -> None:
    """a drop-in of `virtksm-ksm.service` sets use_zero_pages; without it, or stopped, it puts back what it found"""
    found, drop_in = ksm("use_zero_pages"), Path("/etc/systemd/system/virtksm-ksm.service.d/zero.conf")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(ksm("use_zero_pages") == found, "it is not kept by default")
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nEnvironment=USE_ZERO_PAGES={1 - found}\n", encoding="ascii")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(ksm("use_zero_pages") == 1 - found, "it is not set")
    drop_in.unlink()
    drop_in.parent.rmdir()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(ksm("use_zero_pages") == found, "it is not put back")
    run("systemctl", "stop", "virtksm-ksm.service")
    claim(ksm("run") == 0, f"run {ksm('run')}")
    run("systemctl", "start", "virtksm-ksm.service")
    claim(ksm("run") == 1, f"run {ksm('run')}")


def stops() -> None:
    """`systemctl stop`: the baseline is back, and nothing has failed"""
    wait(is_idle, "being idle")
    run("systemctl", "stop", "virtksm.service")
    claim(settings() == BASELINE, settings())
    state = (shown("virtksm.service", "ActiveState"), shown("virtksm.service", "Result"))
    claim(state == ("inactive", "success"), state)


def without_a_rule() -> None:
    """without a polkit rule libvirt turns the agent away, and the log says so"""
    install_rules("")
    seen = log()
    run("systemctl", "start", "virtksm.service")
    wait_logged("libvirt_unreachable.*authentication", seen)
    claim(settings() == BASELINE, settings())
    claim(doctor("virtksm")["permission"] == "FAIL", "doctor says that the agent's user may set")


def with_the_plain_rule() -> None:
    """50-virtksm.rules lets it in, by itself, and that user may do anything with libvirt: as good as root"""
    seen = log()
    install_rules("50-virtksm.rules")
    wait_logged("libvirt_connected", seen)
    wait(is_idle, "being idle")
    guest_xml("boot4")
    as_virtksm("define", "/run/boot4.xml")
    as_virtksm("undefine", "boot4")


def with_too_little() -> None:
    """libvirt's access driver polkit and the plain rule: it may look, a setting is refused and the log says why"""
    run("systemctl", "stop", "virtksm.service")
    claim(settings() == BASELINE, settings())
    with Path(f"/etc/libvirt/{libvirt_daemon()}.conf").open("a", encoding="utf-8") as conf:
        conf.write('access_drivers = ["polkit"]\n')
    run("systemctl", "restart", f"{libvirt_daemon()}.service")
    seen = log()
    run("systemctl", "start", "virtksm.service")
    wait_logged("settings_refused.*not_authorized", seen)
    claim(settings() == BASELINE, settings())
    claim(doctor("virtksm")["permission"] == "FAIL", "doctor says that the agent's user may set")


def with_the_fine_rules() -> None:
    """50-virtksm-fine-grained.rules and that driver: it tunes, and hears a guest start and stop"""
    install_rules(FINE_GRAINED)
    retune()
    claim(doctor("virtksm")["permission"] == "PASS", "doctor says that the agent's user may not set")
    wait(is_idle, "being idle")
    seen = log()
    start_guest("boot3")
    wait_logged(heard("started", "boot3"), seen)
    wait(lambda: ksm("pages_sharing") >= 2 * COMMON_MIB * 256, "merged pages of a third guest")
    wait(is_idle, "being idle again")
    run("virsh", "destroy", "boot3")
    wait_logged(heard("stopped", "boot3"), seen)


def and_no_more() -> None:
    """that user may then list guests and read their XML, and is denied all else of libvirt"""
    claim("boot1" in as_virtksm("list"), "boot1 is not seen")
    as_virtksm("dumpxml", "boot1")
    as_virtksm("node-memory-tune")
    as_virtksm("domstats", "--block", "boot1")
    for denied in (
        ("dumpxml", "--security-info", "boot1"),
        ("define", "/run/boot4.xml"),
        ("create", "/run/boot4.xml"),
        ("suspend", "boot1"),
        ("reset", "boot1"),
        ("destroy", "boot1"),
        ("setmem", "boot1", "32M"),
        ("domdirtyrate-calc", "boot1", "--seconds", "1"),
        ("memtune", "boot1", "--hard-limit", "1G"),
        ("dump", "boot1", "/run/dump"),
        ("screenshot", "boot1", "/run/screen"),
        ("qemu-monitor-command", "boot1", "--hmp", "info version"),
        ("metadata", "boot1", "--uri", "http://example.org/x", "--key", "x", "--set", "<x/>"),
        *(ASKS_OTHER_DRIVERS if libvirt_daemon() == "libvirtd" else ()),
    ):
        said = as_virtksm(*denied, denied=True)
        claim("access denied" in said, f"virsh {' '.join(denied)}: {said}")
    claim("boot1" in run("virsh", "list"), "boot1 is gone")


def with_any_less() -> None:
    """each action that those rules grant is needed: without it the call it is for is denied"""
    rules = (INSTALLED / "conf" / "polkit" / FINE_GRAINED).read_text(encoding="utf-8")
    granted = re.findall(r'^ +"(org\.libvirt\.[\w.-]+)"', rules, re.MULTILINE)
    claim(set(granted) == set(NEEDED_BY), granted)
    for action, call in NEEDED_BY.items():
        as_virtksm(*call)
        fewer = re.sub(rf'"{re.escape(action)}"', '"nothing"', rules)
        write_rules(fewer)
        as_virtksm(*call, denied=True)
        write_rules(rules)


def and_for_named_guests_a_little_more() -> None:
    """40-virtksm-monitor.rules beside them: it takes the guests that the rule names out of KSM, and no other"""
    polkit = INSTALLED / "conf" / "polkit"
    monitor, fine = ((polkit / name).read_text(encoding="utf-8") for name in (MONITOR, FINE_GRAINED))
    said = run("virtksm", "guest", "unmerge", "boot1", fails=True, user="virtksm")
    claim(MONITOR in said, said)
    write_rules(monitor.replace("private-1", "boot1") + fine)
    said = run("virtksm", "guest", "unmerge", "boot1", user="virtksm")
    claim("must not merge" in said and "CAP_SYS_PTRACE" in said, said)
    said = run("virtksm", "guest", "unmerge", "boot2", fails=True, user="virtksm")
    claim(MONITOR in said, said)
    said = run("virtksm", "guest", "merge", "boot1")
    claim(" may merge" in said, said)
    write_rules(fine)


def and_stops() -> None:
    """with those rules, too, the baseline is back after `systemctl stop`"""
    stops()


CLAIMS: tuple[Callable[[], None], ...] = (
    installed,
    unprivileged,
    tunes,
    reads_guests,
    reads_no_more,
    diagnoses,
    poked,
    survives_libvirt,
    needs_no_libvirt,
    tells_metrics,
    restores_when_killed,
    restores_when_wedged,
    leaves_no_strangers,
    proves_off,
    changes_nodes,
    sets_zero_pages,
    stops,
    without_a_rule,
    with_the_plain_rule,
    with_too_little,
    with_the_fine_rules,
    and_no_more,
    with_any_less,
    and_for_named_guests_a_little_more,
    and_stops,
)

if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
