"""What the Debian package promises, claim by claim, tried in a booted Debian on the real kernel with real guests.

The container has libvirt, and apt's cache has the distribution's ksmtuned. The claims follow one host: from ksmtuned to
virtksm and back, then through an upgrade to the removal.
"""

import json
import os
import pwd
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.boot.inside import (
    BASELINE,
    CHECKOUT,
    COMMON_MIB,
    CONFIG,
    HOOK,
    KSM,
    claim,
    claim_clean,
    claim_verdict,
    complaints,
    doctor,
    is_idle,
    ksm,
    log,
    main_pid,
    merge_two,
    report,
    retune,
    run,
    settings,
    shown,
    start_guest,
    wait,
    wait_logged,
)

PACKAGES = sorted((CHECKOUT / "build" / "boot" / "packages").glob("virtksm_*.deb"))
DROP_IN = Path("/etc/virtksm/conf.d/50-boot.toml")
TAKEN = Path("/etc/virtksm/conf.d/10-ksmtuned.toml")
CONFIGURATION = Path("/etc/virtksm/virtksm.toml")
STATE = Path("/run/virtksm/agent/local.json")
FIFO = Path("/run/virtksm/poke")
KERNELS = {"pages_to_scan": 100, "sleep_millisecs": 20}
UNITS = ("virtksm.service", "virtksm-ksm.service")
HOLDS_TRACES = ("/proc", "/sys", "/dev", "/run/checkout", "/run/out", "/var/log", "/var/cache/apt", "/run/systemd")
"""Where a package's name may stay: other file systems, what the test brought along, logs, apt's cache, this unit."""

LIBVIRTDS: list[str] = []
"""Which run of libvirtd was there before virtksm."""
IN_BASH = """
source /usr/share/bash-completion/completions/virtksm
COMP_WORDS=(virtksm "$@") COMP_CWORD=$#
_virtksm
echo "${COMPREPLY[@]}"
"""
IN_ZSH = r"""
zmodload zsh/zpty
zpty shell 'TERM=dumb zsh -f -i'
zpty -w shell 'autoload -Uz compinit; compinit -u -D'
zpty -w shell 'virtksm() { print -r -- to""ld: "$@" so"". }'
zpty -w -n shell "virtksm $*"$'\t\n'
zpty -r -m shell said '*told: * so.*'
print -r -- ${${said##*told: }%% so.*}
"""
HOLDS = """
import ctypes, sys, time
if sys.argv[1] == "by itself":
    ctypes.CDLL(None).prctl(67, 1, 0, 0, 0)  # PR_SET_MEMORY_MERGE
data = bytearray(b"x" * (int(sys.argv[2]) << 20))
time.sleep(600)
"""
MEMORY_KSM = 254
"""The first systemd that knows MemoryKSM=."""
QEMU_KVM = """\
[Unit]
Description=QEMU KVM preparation - module, ksm, hugepages
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'sleep 1; echo 0 >/sys/kernel/mm/ksm/run'
[Install]
WantedBy=multi-user.target
"""
"""Of the shape of Ubuntu's, with the switch the wrong way round and a second's work, so that the order shows."""
IDLE = "KSM_MONITOR_INTERVAL=1\nKSM_THRES_COEF=0\nKSM_THRES_CONST=1\n"
BUSY = "KSM_MONITOR_INTERVAL=1\nKSM_THRES_COEF=100\n"


def apt(*arguments: str) -> str:
    """Run apt-get as an administrator would, with nobody to answer its questions."""
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    return run("apt-get", "--quiet", "--yes", "--no-install-recommends", *arguments)


def install(package: Path) -> str:
    return apt("install", str(package))


def installed_version() -> str:
    return run("dpkg-query", "--show", "--showformat=${Version}", "virtksm")


def install_ksmtuned(configuration: str) -> None:
    apt("install", "ksmtuned")
    Path("/etc/ksmtuned.conf").write_text(configuration, encoding="ascii")
    run("systemctl", "restart", "ksmtuned.service")


def agents_baseline() -> dict[str, int]:
    """Return what the agent would give back."""
    parameters = json.loads(STATE.read_text(encoding="utf-8"))["ownership"]
    return {name: parameters[name]["baseline"] for name in KERNELS}


def status() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run("virtksm", "status", "--json"))
    return told


def is_active(unit: str) -> bool:
    return shown(unit, "ActiveState") == "active"


def traces() -> list[str]:
    """Return every file and folder with virtksm's name, but those that may stay."""
    left_out = [word for place in HOLDS_TRACES for word in ("-path", place, "-prune", "-o")]
    return run("find", "/", *left_out, "-iname", "*virtksm*", "-print").splitlines()


def takes_over() -> str:
    """Install the package over ksmtuned, and claim what must be so afterwards."""
    said = install(PACKAGES[0])
    claim("ksmtuned" in re.findall(r"REMOVED:\s+(\S+)", said), said)
    wait(lambda: is_active("virtksm.service"), "the agent")
    wait_logged("pass_completed", "")
    claim(ksm("run") == 1, f"run is {ksm('run')}")
    claim(agents_baseline() == KERNELS, agents_baseline())
    claim(shown("ksmtuned.service", "LoadState") == "not-found", "ksmtuned is still there")
    claim("virtksm: KSM is switched on, now and at every boot" in said, said)
    return said


def installs_without_ksm(why: str) -> None:
    """Install the package anew, and claim that KSM stays off and that this is said."""
    (KSM / "run").write_text("0", encoding="ascii")
    said = install(PACKAGES[1])
    wait(lambda: is_active("virtksm.service"), "the agent")
    claim(why in said, said)
    claim(ksm("run") == 0, f"run is {ksm('run')}")


# --- the claims, in this order ---------------------------------------------------------------------------------------


def from_idle() -> None:
    """with ksmtuned idle (run=0), `apt install ./virtksm.deb` takes its place: KSM runs, the baseline is its default"""
    for name, value in {"run": 0, **KERNELS}.items():
        (KSM / name).write_text(str(value), encoding="ascii")
    run("virsh", "list")
    LIBVIRTDS.append(shown("libvirtd.service", "InvocationID"))
    install_ksmtuned(IDLE)
    wait(lambda: ksm("run") == 0, "ksmtuned to be idle")
    said = takes_over()
    claim(f"{TAKEN}: written: adaptive.reserve_percent = 0" in said, said)
    claim("left out: ksmtuned.monitor_interval = 1" in said, said)


def is_clean() -> None:
    """right after the installation `virtksm doctor` finds nothing in the way, and that libvirtd has seen the hook"""
    claim_clean()


def and_back() -> None:
    """`apt install ksmtuned` is the way back: virtksm goes, with the kernel's settings as they were"""
    said = apt("install", "ksmtuned")
    claim("virtksm" in re.findall(r"REMOVED:\s+(\S+)", said), said)
    claim(not STATE.exists(), f"{STATE} is left")
    wait(lambda: is_active("ksmtuned.service"), "ksmtuned")
    claim(settings() == KERNELS, settings())


def from_busy() -> None:
    """with ksmtuned busy (1250 pages, 10 ms), it does the same, and those values are nobody's baseline"""
    install_ksmtuned(BUSY)
    wait(lambda: settings() == {"pages_to_scan": 1250, "sleep_millisecs": 10}, "ksmtuned to be busy")
    takes_over()
    claim(not Path("/run/ksmtune.pid").exists(), "ksmtuned's trace is left")
    run("systemctl", "stop", "virtksm.service")
    claim(settings() == KERNELS, settings())


def takes_its_threshold() -> None:
    """the first installation took ksmtuned's tuned threshold into conf.d, and no later one has written there again"""
    claim("reserve_percent = 0\n" in TAKEN.read_text(encoding="utf-8"), TAKEN.read_text(encoding="utf-8"))
    claim("reserve_percent = 0" in run("virtksm", "config", "show"), run("virtksm", "config", "show"))
    TAKEN.unlink()


def takes_its_settings() -> None:
    """ksmtuned's configuration is still there, and `virtksm config import` turns it into ours"""
    imported = Path("/run/imported.toml")
    run("virtksm", "config", "import", "--policy", "ksmtuned", "/etc/ksmtuned.conf", "-o", str(imported))
    run("virtksm", "config", "check", str(imported))
    claim("thres_coef = 100" in imported.read_text(encoding="utf-8"), imported.read_text(encoding="utf-8"))


def serves() -> None:
    """both units are enabled, the agent runs as virtksm and starts again with the administrator's own baseline"""
    for name, value in BASELINE.items():
        (KSM / name).write_text(str(value), encoding="ascii")
    DROP_IN.write_text(CONFIG, encoding="utf-8")
    edited = CONFIGURATION.read_text(encoding="utf-8").replace('#log_format = "auto"', 'log_format = "journal"')
    CONFIGURATION.write_text(edited, encoding="utf-8")
    run("systemctl", "start", "virtksm.service")
    for unit in UNITS:
        run("systemctl", "is-enabled", unit)
    claim(Path(f"/proc/{main_pid()}").owner() == "virtksm", Path(f"/proc/{main_pid()}").owner())
    wait(is_idle, "being idle")
    claim(agents_baseline() == BASELINE, agents_baseline())


def explains_itself() -> None:
    """man pages, documents, and completion for bash, zsh and fish are where those look for them"""
    listed = set(run("dpkg", "--listfiles", "virtksm").split())
    for path in (
        "/usr/share/man/man1/virtksm.1.gz",
        "/usr/share/man/man5/virtksm.toml.5.gz",
        "/usr/share/man/man7/virtksm-hook.7.gz",
        "/usr/share/bash-completion/completions/virtksm",
        "/usr/share/zsh/vendor-completions/_virtksm",
        "/usr/share/fish/vendor_completions.d/virtksm.fish",
        "/usr/share/doc/virtksm/docs/guide.md",
        "/usr/share/cockpit/virtksm/manifest.json",
    ):
        claim(path in listed, path)
    claims_completed("resto", "restore", {"restore"})
    claims_completed("agent --log-level deb", "agent --log-level debug", {"debug"})


def claims_completed(typed: str, by_zsh: str, offered: set[str]) -> None:
    """Claim what the shells make of words behind `virtksm`; zsh types on as far as what it offers is the same."""
    said = run("bash", "-c", IN_BASH, "-", *typed.split())
    claim(set(said.split()) == offered, said)
    said = run("zsh", "-f", "-c", IN_ZSH, "-", *typed.split())
    claim(said.strip() == by_zsh, said)
    said = run("fish", "-c", f"complete -C 'virtksm {typed}'")
    claim({line.split("\t")[0] for line in said.splitlines()} == offered, said)


def tunes() -> None:
    """two guests start, their common pages are merged in the real kernel; then it idles"""
    merge_two()


def knows_guests() -> None:
    """bash, zsh and fish complete the names of running guests"""
    claims_completed("guests boo", "guests boot", {"boot1", "boot2"})
    claims_completed("guests boot1 boot", "guests boot1 boot", {"boot1", "boot2"})


def hook_is_heard() -> None:
    """libvirtd, reloaded and never restarted, runs the installed hook, and its poke leads to a pass"""
    claim(re.search(r"event_received.*poke|pass_completed.*poke", log()), "no poke in the log")
    claim([shown("libvirtd.service", "InvocationID")] == LIBVIRTDS, "libvirtd was restarted")


def sees_memory_of_others() -> None:
    """the agent has no right to see whose memory may merge, and doctor says so; of MemoryKSM= systemd tells it (254)"""
    started = hold_others("others", "by itself")
    numbers = retune()["decision"]["numbers"]
    claim(numbers["other_processes_bytes"] == 0 and numbers["other_processes_unread"] > 0, numbers)
    claim_verdict("other_processes_seen", "WARN")
    claim(doctor("virtksm")["other_processes_seen"] == "INFO", "a user who may not look gives a verdict")
    run("systemctl", "stop", started)
    if int(run("systemctl", "--version").split()[1]) < MEMORY_KSM:
        return
    wait(has_no_backlog, "the guests' full scans")
    merged = ksm("pages_sharing")
    started = hold_others("others", "by its unit", "--property=MemoryKSM=yes")
    numbers = retune()["decision"]["numbers"]
    claim(numbers["other_processes_bytes"] >= COMMON_MIB << 20, numbers)
    claim_verdict("other_processes_seen", "PASS")
    wait(lambda: ksm("pages_sharing") > merged + COMMON_MIB * 256 * 0.9, "merged pages of others")
    run("systemctl", "stop", started)
    run("systemctl", "restart", "virtksm.service")
    wait(lambda: ksm("pages_sharing") < merged + COMMON_MIB * 256 * 0.1, "a full scan without them")
    wait(has_no_backlog, "being idle again")


def has_no_backlog() -> bool:
    decision = retune()["decision"]
    return (decision["rule"], decision["numbers"]["settling_bytes"]) == ("idle", 0)


def hold_others(name: str, how: str, *options: str) -> str:
    """Start a service that holds equal pages and an agent that has not asked yet; return the service's name."""
    run("systemd-run", f"--unit={name}", *options, "/usr/bin/python3", "-c", HOLDS, how, str(COMMON_MIB))
    process = Path("/proc", shown(name, "MainPID"))
    wait(lambda: "ksm_merge_any: yes" in (process / "ksm_stat").read_text(encoding="ascii"), "memory that may merge")
    wait(lambda: int((process / "statm").read_text(encoding="ascii").split()[1]) > COMMON_MIB * 256, "its memory")
    seen = log()
    run("systemctl", "restart", "virtksm.service")
    wait_logged("pass_completed", seen)
    return f"{name}.service"


def upgrades_under_load() -> None:
    """an upgrade while guests start keeps them, what is merged, the configuration without a question, the baseline"""
    merged = ksm("pages_sharing")
    start_guest("boot3")
    pid = main_pid()
    said = install(PACKAGES[1])
    start_guest("boot4")
    claim(installed_version() == version(PACKAGES[1]), said)
    claim(main_pid() not in (0, pid), "the old agent still runs")
    wait(lambda: ksm("pages_sharing") >= merged + 2 * COMMON_MIB * 256, "merged pages of two guests more")
    wait(is_idle, "being idle")
    claim(retune()["sensed"]["guests"] == 4, "a guest was lost")
    claim(agents_baseline() == BASELINE, agents_baseline())
    shows = run("virtksm", "config", "show")
    claim(re.search(rf'log_format = "journal" +# {CONFIGURATION}', shows), shows)
    claim(re.search(rf'engage = "always" +# {DROP_IN}', shows), shows)
    claim(not list(CONFIGURATION.parent.glob("*.dpkg-*")), "dpkg has asked")
    claim(ksm("run") == 1, "KSM is off")


def version(package: Path) -> str:
    return package.name.split("_")[1]


def upgrade_leaves_ksm_off() -> None:
    """an upgrade leaves KSM off where it was switched off, and a package that is not upgraded is not asked again"""
    (KSM / "run").write_text("0", encoding="ascii")
    said = apt("install", "--reinstall", str(PACKAGES[1]))
    wait(lambda: is_active("virtksm.service"), "the agent")
    claim(ksm("run") == 0, f"run is {ksm('run')}: {said}")
    claim("virtksm: KSM" not in said, said)
    run("systemctl", "is-enabled", "virtksm-ksm.service")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(ksm("run") == 1, "KSM is off")


def leaves_real_time_alone() -> None:
    """where tuned's cpu-partitioning keeps KSM off, nothing of ours switches it on, and doctor says which is to go"""
    apt("install", "tuned")
    run("systemctl", "stop", "tuned.service")
    Path("/etc/tuned/active_profile").write_text("cpu-partitioning\n", encoding="ascii")
    (KSM / "run").write_text("0", encoding="ascii")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(ksm("run") == 0, f"run is {ksm('run')}")
    found = complaints(doctor())
    claim((found.get("tuned"), found.get("ksm_run")) == ("WARN", None), found)
    claim("switches it off" in run("virtksm", "doctor", "--kept-off", fails=True), "not kept off")
    said = run("/bin/sh", "-c", "virtksm doctor || true")
    claim("systemctl disable --now virtksm.service" in said, said)
    apt("remove", "virtksm")
    installs_without_ksm("virtksm: KSM stays off: tuned's profile cpu-partitioning")
    Path("/etc/tuned/active_profile").write_text("throughput-performance\n", encoding="ascii")
    run("systemctl", "restart", "virtksm-ksm.service")
    claim(ksm("run") == 1, "another profile does not let KSM be switched on")
    apt("purge", "tuned")


def leaves_a_choice_alone() -> None:
    """a masked ksm.service and a line of tmpfiles.d keep KSM off, too"""
    line = Path("/etc/tmpfiles.d/no-ksm.conf")
    for keep, release in (
        (lambda: run("systemctl", "mask", "ksm.service"), lambda: run("systemctl", "unmask", "ksm.service")),
        (lambda: line.write_text("w /sys/kernel/mm/ksm/run - - - - 0\n", encoding="ascii"), line.unlink),
    ):
        keep()
        (KSM / "run").write_text("0", encoding="ascii")
        run("systemctl", "restart", "virtksm-ksm.service")
        claim(ksm("run") == 0, f"run is {ksm('run')}")
        release()
        run("systemctl", "restart", "virtksm-ksm.service")
        claim(ksm("run") == 1, "KSM is off")


def goes_after_ubuntus() -> None:
    """a qemu-kvm.service as Ubuntu's that still starts goes first: KSM is on afterwards, and doctor knows the unit"""
    unit = Path("/etc/systemd/system/qemu-kvm.service")
    unit.write_text(QEMU_KVM, encoding="ascii")
    Path("/etc/default/qemu-kvm").write_text("KSM_ENABLED=1\nSLEEP_MILLISECS=200\n", encoding="ascii")
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "qemu-kvm.service")
    run("systemctl", "restart", "qemu-kvm.service", "virtksm-ksm.service")  # two jobs: the second waits or does not
    claim(ksm("run") == 1, f"run is {ksm('run')}")
    claim_verdict("qemu_kvm", "PASS")
    Path("/etc/default/qemu-kvm").write_text("KSM_ENABLED=0\n", encoding="ascii")
    claim_verdict("qemu_kvm", "WARN")
    run("systemctl", "disable", "--now", "qemu-kvm.service")
    unit.unlink()
    Path("/etc/default/qemu-kvm").unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "virtksm-ksm.service")
    run("systemctl", "restart", "virtksm.service")
    wait(is_idle, "being idle")


def without_an_agent() -> None:
    """virtksm-retune.socket in the agent's place: a guest's start leads to one pass, and its end gives settings back"""
    DROP_IN.write_text('policy = "ksmtuned"\n[ksmtuned]\nthres_coef = 100\n', encoding="utf-8")
    run("systemctl", "start", "virtksm-retune.socket")
    claim(not is_active("virtksm.service"), "the agent still runs")
    claim(settings() == BASELINE, settings())
    claim((FIFO.owner(), FIFO.stat().st_mode & 0o777) == ("virtksm", 0o600), oct(FIFO.stat().st_mode))
    start_guest("boot5")
    wait(lambda: settings() != BASELINE, "a pass")
    wait(lambda: not is_active("virtksm-retune.service"), "the pass to end")
    passes = shown("virtksm-retune.service", "InvocationID")
    time.sleep(2)  # one poke, one pass: the same is not answered again and again
    claim(shown("virtksm-retune.service", "InvocationID") == passes, "it runs for ever")
    claim(shown("virtksm-retune.socket", "Result") == "success", shown("virtksm-retune.socket", "Result"))
    run("systemctl", "stop", "virtksm-retune.socket")
    claim(settings() == BASELINE, settings())
    claim(FIFO.is_fifo(), "the agent has no FIFO")


def and_with_one_again() -> None:
    """the agent back in the socket's place listens to its FIFO as before"""
    DROP_IN.write_text(CONFIG, encoding="utf-8")
    run("systemctl", "start", "virtksm-retune.socket")
    run("systemctl", "start", "virtksm.service")
    claim(not is_active("virtksm-retune.socket"), "the socket still listens")
    wait(is_idle, "being idle")
    seen = log()
    run(str(HOOK), "boot1", "started", "begin", "-")
    wait_logged("pass_completed.*poke", seen)


def removed() -> None:
    """`apt remove` under load gives KSM's settings and switch back; the hook that is left does no harm to a guest"""
    apt("remove", "virtksm")
    claim(settings() == BASELINE, settings())
    claim(ksm("run") == 0, f"run is {ksm('run')}")
    claim({str(HOOK), "/etc/virtksm"} <= set(traces()), f"configuration is gone before the purge: {traces()}")
    start_guest("boot6")
    claim(settings() == BASELINE, settings())


def comes_back() -> None:
    """installed again, it has its configuration, and tunes"""
    install(PACKAGES[1])
    wait(is_idle, "being idle")
    claim(ksm("run") == 1, f"run is {ksm('run')}")
    claim("50-boot.toml" in run("virtksm", "config", "show"), run("virtksm", "config", "show"))


def stays_off() -> None:
    """removed while `virtksm pause` holds, ksmd stays idle; installed again, it is still off, until `virtksm resume`"""
    run("virtksm", "pause")
    said = apt("remove", "virtksm")
    claim("virtksm is paused" in said, said)
    claim(is_idle() and ksm("run") == 0, f"{settings()}, run is {ksm('run')}")
    said = install(PACKAGES[1])
    claim(ksm("run") == 0, f"run is {ksm('run')}, and it is off")
    claim("virtksm: KSM stays off: virtksm is paused, until virtksm resume" in said, said)
    wait(lambda: is_active("virtksm.service"), "the agent")
    retune()
    claim(status()["paused"], "it is no longer off")
    claim(is_idle(), settings())
    run("virtksm", "resume")
    claim(not status()["paused"], "it is still off")
    claim(agents_baseline() == BASELINE, agents_baseline())


def purged() -> None:
    """`apt purge` leaves no file, no user, no unit, no setting; all guests still run"""
    apt("purge", "virtksm")
    claim((settings(), ksm("run")) == (BASELINE, 0), (settings(), ksm("run")))
    claim(not traces(), traces())
    claim("virtksm" not in {user.pw_name for user in pwd.getpwall()}, "the user is left")
    known = run("systemctl", "list-units", "--all", "--no-legend", "--plain", "virtksm*")
    claim(not known, known)
    guests = run("virsh", "list", "--name").split()
    claim(guests == [f"boot{number}" for number in range(1, 7)], guests)


def preset_says_no() -> None:
    """a preset that disables virtksm-ksm.service keeps KSM off, which is said; an account that was there stays"""
    preset = Path("/etc/systemd/system-preset/10-no-ksm.preset")
    preset.parent.mkdir(parents=True, exist_ok=True)
    preset.write_text("disable virtksm-ksm.service\n", encoding="ascii")
    run("useradd", "--system", "--user-group", "--no-create-home", "--comment", "somebody's", "virtksm")
    installs_without_ksm("virtksm: KSM stays as it is")
    run("systemctl", "is-enabled", "virtksm-ksm.service", fails=True)
    preset.unlink()
    apt("purge", "virtksm")
    claim(pwd.getpwnam("virtksm").pw_gecos == "somebody's", "another account")
    run("userdel", "virtksm")
    claim(not traces(), traces())


def answer_says_no() -> None:
    """so does debconf's answer, given beforehand; dpkg-reconfigure changes it"""
    seed("false")
    installs_without_ksm("virtksm: KSM stays as it is")
    run("systemctl", "is-enabled", "virtksm-ksm.service", fails=True)
    seed("true")
    run("dpkg-reconfigure", "virtksm")
    claim(ksm("run") == 1, f"run is {ksm('run')}")
    run("systemctl", "is-enabled", "virtksm-ksm.service")
    apt("purge", "virtksm")
    claim(not traces(), traces())


def seed(answer: str) -> None:
    run("/bin/sh", "-c", f"echo virtksm virtksm/switch-ksm-on boolean {answer} | debconf-set-selections")


CLAIMS: tuple[Callable[[], None], ...] = (
    from_idle,
    is_clean,
    and_back,
    from_busy,
    takes_its_threshold,
    takes_its_settings,
    serves,
    explains_itself,
    tunes,
    knows_guests,
    hook_is_heard,
    sees_memory_of_others,
    upgrades_under_load,
    upgrade_leaves_ksm_off,
    leaves_a_choice_alone,
    goes_after_ubuntus,
    without_an_agent,
    and_with_one_again,
    removed,
    comes_back,
    stays_off,
    leaves_real_time_alone,
    purged,
    preset_says_no,
    answer_says_no,
)

if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
