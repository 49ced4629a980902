"""What `virtksm doctor` reads, from trees of files: a healthy host, one thing changed, things that are no answer."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.healthy_host import HEALTHY, STATUS, URI, with_files, write_tree
from tests.lab.hostile_agent import answer_to
from virtksm.cli.answers import take
from virtksm.cli.doctor import ASKED_FOR
from virtksm.config.schema import Config
from virtksm.doctor.checks import examine
from virtksm.doctor.checks.hook import HOOK
from virtksm.doctor.checks.kernel import parse_count
from virtksm.doctor.facts import Here, find_kept_off
from virtksm.doctor.finding import CannotTell
from virtksm.doctor.reading.boot import parse_commands
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.own import NO_PASS, NONE_SWITCHED, read_config, read_state, see_agent
from virtksm.doctor.reading.processes import ProcessSeen, find_daemon, find_peer, is_read_only, parse_process
from virtksm.doctor.reading.selinux import allows, may_execute
from virtksm.doctor.reading.units import Tuned, keeps_ksm_off, mentions_ksm, parse_includes
from virtksm.paths import RuntimePaths
from virtksm.store.state import dump_host_state
from virtksm.tuning.ownership import HostState, Ownership
from virtksm.values import replace


def read(root: Path, uri: str = URI, *, peer_pid: int | None = None) -> Here:
    return Here(Root(str(root)), uri, peer_pid=peer_pid)


def files(**changed: str | None) -> Here:
    found = with_files(**changed).here
    assert isinstance(found, Here)
    return found


def text(here: Here, check: str) -> str:
    found = next(one for one in examine(replace(HEALTHY, here=here)) if one.check == check)
    return f"{found.verdict} {found.detail}"


def test_what_is_no_file_hangs_nobody_and_a_link_that_leads_in_circles_is_told(tmp_path: Path) -> None:
    names = ("run", "max_page_sharing", "use_zero_pages")
    fifo, folder, circle = (tmp_path / "sys/kernel/mm/ksm" / name for name in names)
    write_tree(tmp_path, **{f"sys/kernel/mm/ksm/{name}": None for name in names})
    os.mkfifo(fifo)
    folder.mkdir()
    rules = tmp_path / "etc/polkit-1/rules.d"
    rules.parent.mkdir()
    for link in (circle, tmp_path / "etc/rc.local", tmp_path / "etc/sysfs.d", rules):
        link.symlink_to(link.name)
    (tmp_path / "usr/share/polkit-1/rules.d/50-virtksm.rules").unlink()
    (tmp_path / "sys/fs/cgroup/system.slice/ksmtuned.service/cgroup.procs").mkdir(parents=True)
    (tmp_path / "proc/50/attr/current").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux").mkdir()
    (tmp_path / "sys/fs/selinux/enforce").write_text("1", encoding="ascii")
    here = read(tmp_path)
    assert text(here, "ksm_run") == "WARN cannot tell: /sys/kernel/mm/ksm/run is no regular file"
    assert text(here, "max_page_sharing").endswith("max_page_sharing is no regular file")
    assert "Too many levels of symbolic links" in text(here, "use_zero_pages")
    assert [one.partition(": Too many")[0] for one in here.boot.unread] == ["/etc/sysfs.d", "/etc/rc.local"]
    assert text(here, "boot").startswith("INFO not all could be read: /etc/sysfs.d: Too many")
    assert text(here, "ksmtuned").startswith("FAIL ksmtuned.service runs"), "what cannot be read is there"
    assert text(here, "sys_writable") == "PASS libvirtd (pid 50) sees it writable", "how it is confined is unknown"
    without = replace(HEALTHY, here=here, known_agent=None)
    (permission,) = (one for one in examine(without) if one.check == "agent_permission")
    assert permission.detail.startswith("cannot tell: /etc/polkit-1/rules.d: Too many levels")


@pytest.mark.parametrize(
    ("answer", "is_allowed"),
    [
        ("12 ffffffff 0 ffffffff 5 0", True),
        ("2 ffffffff 0 ffffffff 5 0", False),
        ("2 ffffffff 0 ffffffff 5 1\0", True),  # a permissive domain
    ],
)
def test_selinux_allows_what_its_answer_holds(answer: str, is_allowed: bool) -> None:
    assert allows(answer, 5) is is_allowed


def test_selinux_is_asked_by_the_kernels_numbers_and_an_answer_that_is_none_is_told(tmp_path: Path) -> None:
    folder, root = tmp_path / "sys/fs/selinux", Root(str(tmp_path))
    permission = folder / "class/file/perms/execute"
    permission.parent.mkdir(parents=True)
    (folder / "class/file/index").write_text("7", encoding="ascii")
    (folder / "access").touch()
    with pytest.raises(CannotTell, match="does not name"):
        may_execute(root, "u:r:virtd_t:s0", "u:o:bin_t:s0")
    permission.write_text("14", encoding="ascii")
    with pytest.raises(CannotTell, match="answers ''"):
        may_execute(root, "u:r:virtd_t:s0", "u:o:bin_t:s0")
    assert (folder / "access").read_text(encoding="ascii") == "u:r:virtd_t:s0 u:o:bin_t:s0 7"


def test_a_process_is_who_is_its_real_and_effective_user() -> None:
    assert parse_process(7, STATUS.format(name="a b", pid=7, uid=36)) == ProcessSeen(7, "a b", 36, 1)
    assert parse_process(7, "Name:\tx\nUid:\t0\t0\t0\t0\n") == ProcessSeen(7, "x", 0, 0)
    for uids in ("1000\t0", "0\t1000"):
        assert parse_process(7, f"Name:\tx\nUid:\t{uids}\t0\t0\n") is None
    assert parse_process(7, "Name:\tx\nState:\tZ (zombie)\nUid:\t0\t0\t0\t0\n") is None
    assert parse_process(7, "Name:\tx\n") is None


def test_of_several_daemons_it_is_roots_and_inits_and_the_connections_own_before_all() -> None:
    def named(*processes: tuple[int, str, int, int]) -> int:
        return find_daemon([ProcessSeen(*one) for one in processes])

    assert named((5, "libvirtd", 0, 4), (9, "libvirtd", 0, 1)) == 9
    assert named((5, "libvirtd", 0, 1), (9, "virtqemud", 0, 1)) == 9
    assert named((5, "libvirtd", 0, 1), (9, "virtqemud", 36, 1)) == 5
    with pytest.raises(CannotTell, match="no process of libvirt's daemon"):
        named((5, "virtlogd", 0, 1))


def test_where_systemd_holds_the_socket_the_daemon_is_known_by_its_name(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    daemons = [read(root, peer_pid=peer_pid).daemon for peer_pid in (50, 1, None, 1000)]
    assert [(one.pid, one.name) for one in daemons if one] == [*[(50, "libvirtd")] * 3, (1000, "libvirt's daemon")]


def test_a_masked_unit_keeps_ksm_off_and_is_not_enabled(tmp_path: Path) -> None:
    for folder in ("etc", "run"):
        root = write_tree(tmp_path / folder, **{f"{WANTS}/ksm.service": "", "usr/lib/systemd/system/ksm.service": ""})
        unit = root / folder / "systemd/system/ksm.service"
        unit.parent.mkdir(parents=True, exist_ok=True)
        unit.symlink_to("/dev/null")
        assert find_kept_off(read(root)) == "ksm.service is masked"
        unit.unlink()
        unit.write_text("[Unit]\n")
        assert find_kept_off(read(root)) is None
        unit.write_text("")  # masks, too: systemd.unit(5)
        assert find_kept_off(read(root)) == "ksm.service is masked"
        assert not read(root).unit("ksm.service").is_enabled
        assert text(read(root), "ksm_boot").startswith("WARN it is on, and is kept off at the next boot: ksm.service")


WANTS = "etc/systemd/system/multi-user.target.wants"
UNITS = "etc/systemd/system"
RUN, PAGES, SLEEP, ADVISOR = (
    f"/sys/kernel/mm/ksm/{name}" for name in ("run", "pages_to_scan", "sleep_millisecs", "advisor_mode")
)


def test_only_what_declares_the_switch_keeps_ksm_off() -> None:
    assert find_kept_off(files()) is None
    assert find_kept_off(files(**{"etc/tmpfiles.d/ksm.conf": f"#w {RUN} - - - - 0\n"})) is None
    sysfs = files(**{"etc/sysfs.d/ksm.conf": "kernel/mm/ksm/run = 2\n"})
    assert find_kept_off(sysfs) == "/etc/sysfs.d/ksm.conf switches it off at boot"
    blanks = files(**{"etc/tmpfiles.d/ksm.conf": f" \tw {RUN} - - - - 0\n"})
    assert find_kept_off(blanks) == "/etc/tmpfiles.d/ksm.conf switches it off at boot"
    conf = "usr/lib/tuned/virtual-host/tuned.conf"
    unread = files(**{conf: None, f"{conf}/x": "", "etc/sysfs.conf": "kernel/mm/ksm/run=0\n"})
    assert find_kept_off(unread) == "/etc/sysfs.conf switches it off at boot"


@pytest.mark.parametrize(
    ("switch", "is_off"),
    [
        ('KSM_ENABLED="0"', True),
        ("KSM_ENABLED=0 # tenants", True),
        ("  export KSM_ENABLED='0'", True),
        ("KSM_ENABLED=0;", True),
        ("SLEEP_MILLISECS=200 KSM_ENABLED=0", True),
        ("KSM_ENABLED=1\nKSM_ENABLED=0", True),
        ("KSM_ENABLED=0\nKSM_ENABLED=1", False),
        ("KSM_ENABLED=1 # KSM_ENABLED=0", False),
        ("#KSM_ENABLED=0\nMY_KSM_ENABLED=0\nKSM_ENABLED=01", False),
    ],
)
def test_ubuntus_switch_is_read_as_a_shell_reads_it(switch: str, is_off: bool) -> None:
    unit = {f"{WANTS}/qemu-kvm.service": "", "usr/lib/systemd/system/qemu-kvm.service": "[Unit]\n"}
    found = find_kept_off(files(**{"etc/default/qemu-kvm": f"{switch}\n"}, **unit))
    assert found == ("/etc/default/qemu-kvm switches it off at boot" if is_off else None)


@pytest.mark.parametrize(
    ("files_of", "found"),
    [
        ({"throughput/script.sh": "disable_ksm\n"}, "throughput/script.sh"),
        ({"throughput/script.sh": "disable_ksm\n", "throughput/a.conf": "summary=no KSM\n"}, "throughput/script.sh"),
        ({"throughput/script.sh": "# ksm is left alone\n"}, None),
        ({"throughput/tuned.conf": "[main]\ninclude=virtual-host,../../etc\n", "other/tuned.conf": "ksm"}, None),
        ({"throughput/tuned.conf": "[main]\ninclude=${f:virt_check:a:b}\n", "b/tuned.conf": "x=ksm\n"}, "b/tuned.conf"),
    ],
)
def test_a_profile_is_read_with_what_it_includes(files_of: dict[str, str], found: str | None) -> None:
    tuned = files(**{f"usr/lib/tuned/{name}": text for name, text in files_of.items()}).tuned
    assert (tuned.profiles, tuned.ksm_in) == (["virtual-host"], found and f"/usr/lib/tuned/{found}")


def test_a_profile_of_etc_comes_first_and_includes_that_only_tuned_can_resolve_are_kept() -> None:
    own = files(**{"etc/tuned/virtual-host/tuned.conf": "[x]\n/sys/kernel/mm/ksm=0"}).tuned
    assert own == Tuned(["virtual-host"], ksm_in="/etc/tuned/virtual-host/tuned.conf")
    for include, unknown in (
        ("${f:regex_search_ternary:${x}:a:b:c}", ("${f:regex_search_ternary:${x}:a:b:c}",)),
        ("base-${isolated}, throughput", ("base-${isolated}",)),
        ("${f:virt_check:a:throughput}", ()),
    ):
        conf = f"[main]\ninclude={include}\n"
        assert files(**{"usr/lib/tuned/virtual-host/tuned.conf": conf}).tuned.unknown_includes == unknown


def test_a_profile_that_switches_ksm_off_is_told_from_one_that_sets_it() -> None:
    written = (f'echo "2" > {RUN}', f"echo -n '0' >\"{RUN}\"", f"printf '0\\n' > {RUN}", f"echo 2 | tee {RUN}")
    plain = ("    disable_ksm", f"{RUN} = 2", f"{RUN}=0", f"echo 2 > {RUN}", "modprobe kvm; disable_ksm # no latency")
    for line in (*plain, *written):
        assert keeps_ksm_off(f"start() {{\n{line}\n}}\n")
        assert keeps_ksm_off(f"stop() {{ true; }}\nstart() {{ {line}\n}}\n")
        for stop in ("stop() {\n", "  function stop\n{\n"):
            assert not keeps_ksm_off(f"start() {{\nenable_ksm\n}}\n{stop}{line}\n}}\n")
            assert keeps_ksm_off(f"{stop}enable_ksm\n}}\nstart() {{\n{line}\n}}\n")
    for line in (
        "disable_ksm()",
        "# disable_ksm",
        "true # disable_ksm",
        f"{RUN}=1",
        f"{PAGES}=100",
        f'echo "1" > {RUN}',
    ):
        assert not keeps_ksm_off(f"start() {{\n{line}\n}}\n")


def test_what_else_sets_ksm_at_boot() -> None:
    setting = {
        "etc/tmpfiles.d/a.conf": f"w {ADVISOR} - - - - scan-time\n",
        "etc/sysfs.conf": "kernel/mm/ksm/sleep_millisecs = 20\n",
        "etc/udev/rules.d/9.rules": f"RUN+=\"sh -c 'echo 1 > {RUN}'\"\n",
        "etc/rc.local": f"#!/bin/sh\necho 1000 > {PAGES}\n",
        "var/spool/cron/crontabs/root": f"@reboot echo 0 > {RUN}\n",
        "var/spool/cron/root": f"@reboot echo 1 > {RUN}\n",
        "var/spool/cron/tabs/root": f"@reboot echo 2 > {RUN}\n",
        f"{UNITS}/long.service": f"[Service]\n \tExecStart=/bin/sh -c 'echo 5 > \\\n {SLEEP}'\n",
        f"{UNITS}/many@.service": f"[Service]\nExecStart=sh -c 'echo 7 >{RUN}'\n",
        f"{UNITS}/timed.service": f"[Service]\nExecStart=/bin/sh -c 'echo 6 >{SLEEP}'\n",
    }
    enabled = dict.fromkeys((f"{WANTS}/long.service", f"{WANTS}/many@a.service", f"{WANTS}/timed.timer"), "")
    assert files(**setting, **enabled).boot == (
        [
            ("/etc/tmpfiles.d/a.conf", "advisor_mode", "scan-time", True),
            ("/etc/sysfs.conf", "sleep_millisecs", "20", True),
            ("/etc/udev/rules.d/9.rules", "run", "1", False),
            ("/etc/rc.local", "pages_to_scan", "1000", False),
            ("/var/spool/cron/crontabs/root", "run", "0", False),
            ("/var/spool/cron/root", "run", "1", False),
            ("/var/spool/cron/tabs/root", "run", "2", False),
            (f"/{UNITS}/long.service", "sleep_millisecs", "5", False),
            (f"/{UNITS}/many@.service", "run", "7", False),
            (f"/{UNITS}/timed.service", "sleep_millisecs", "6", False),
        ],
        [],
    )


def test_what_is_hidden_commented_only_read_not_enabled_a_users_or_virtksms_own_sets_nothing_at_boot() -> None:
    nothing = {
        "etc/tmpfiles.d/a.conf": "",
        "usr/lib/tmpfiles.d/a.conf": f"w {ADVISOR} - - - - scan-time\n",
        "etc/rc.local": f"#!/bin/sh\n# echo 1000 > {PAGES}\ncat {RUN}\n",
        f"{UNITS}/off.service": f"[Service]\nExecStart=/bin/sh -c 'echo 5 > {SLEEP}'\n",
        f"{UNITS}/allowed.service": f"[Service]\nReadWritePaths={RUN}\n",
        f"{UNITS}/users.service": "[Service]\nExecStart=/home/u/ksm.sh\n",
        "home/u/ksm.sh": f"#!/bin/sh\necho 1 > {RUN}\n",
        "usr/lib/systemd/system/virtksm-ksm.service": f"ExecStart=sh -c 'echo 1 >{RUN}'\n",
    }
    enabled = {f"{WANTS}/{name}.service": "" for name in ("allowed", "users", "virtksm-ksm")}
    assert files(**nothing, **enabled).boot == ([], [])


def test_what_a_unit_runs_sets_ksm_at_boot() -> None:
    script = '#!/bin/sh\nK=/sys/kernel/mm/ksm\necho 1 > $K/run\necho $N | tee "${K}/pages_to_scan"\n'
    more = "[Service]\nExecStartPost=-/opt/ksm.sh -v\n"
    changed = {f"{WANTS}/mine.service": "", f"{UNITS}/mine.service.d/more.conf": more, "opt/ksm.sh": script}
    settings = files(**changed).boot.settings
    assert [(one.file, one.name, one.value) for one in settings] == [
        ("/opt/ksm.sh", "run", "1"),
        ("/opt/ksm.sh", "pages_to_scan", None),
    ]


def test_what_is_no_file_sets_nothing_at_boot_and_hides_what_has_its_name(tmp_path: Path) -> None:
    root = write_tree(tmp_path, **{"usr/lib/tmpfiles.d/a.conf": "w /sys/kernel/mm/ksm/run - - - - 0\n"})
    (root / "etc/init.d/functions").mkdir(parents=True)
    (root / "etc/tmpfiles.d").mkdir()
    assert len(read(root).boot.settings) == 1
    (root / "etc/tmpfiles.d/a.conf").symlink_to("/dev/null")
    assert read(root).boot == ([], [])


def test_a_line_without_end_is_looked_through_quickly() -> None:
    assert parse_commands("/sys/kernel/mm/ksm" + "> $a" * 100_000) == []
    assert parse_commands("echo " + "1" * 900 + "> /sys/kernel/mm/ksm/run") == [("run", None)]


def test_of_comments_nothing_is_taken() -> None:
    assert not mentions_ksm("; KSM\n # ksm\n")
    assert mentions_ksm("[x]\nstop=ksmtuned\n")
    assert parse_includes("[main]\ninclude = a, b c\n#include=d\n") == ["a", "b", "c"]


def test_hooks_are_read_as_the_daemon_sees_them(tmp_path: Path) -> None:
    write_tree(tmp_path)
    ours = tmp_path / "etc/libvirt/hooks/qemu.d/virtksm"
    its = tmp_path / "proc/50/root/etc/libvirt/hooks/qemu.d/virtksm"
    for file, mode in ((ours, 0o644), (its, 0o775)):
        file.parent.mkdir(parents=True)
        file.write_text("#!/bin/sh\n", encoding="ascii")
        file.chmod(mode)
    assert read(tmp_path).hooks == [(HOOK, True, False, its.stat().st_ctime, "")]
    (tmp_path / "proc/50/root").rename(tmp_path / "elsewhere")
    assert read(tmp_path).hooks == [(HOOK, False, os.geteuid() == 0, ours.stat().st_ctime, "")]
    ours.unlink()
    ours.mkdir()
    assert text(read(tmp_path), "hook_executable").startswith("FAIL it is not executable"), "a folder"
    ours.rmdir()
    ours.symlink_to(ours)
    assert "Too many levels of symbolic links" in text(read(tmp_path), "hook_installed")


@pytest.fixture
def listener() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vd", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as server:
        path = Path(folder) / "s"
        server.bind(str(path))
        server.listen()
        yield path


def test_the_daemon_is_whoever_holds_the_other_end_of_libvirts_own_connection(listener: Path) -> None:
    uri = f"{URI}?socket={listener}"
    held = sorted(Path("/proc/self/fd").iterdir())
    assert find_peer(uri) is None, "nothing connects for that"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(listener))
        assert find_peer(uri) == os.getpid()
        assert find_peer(f"{URI}?socket=/other") is None
    assert find_peer(uri) is None
    assert sorted(Path("/proc/self/fd").iterdir()) == held


def test_the_uppermost_mount_over_the_place_decides() -> None:
    over = "1 0 0:1 / / ro - ext4 /dev/x rw\n2 1 0:2 / /sys rw - sysfs sysfs rw\n"
    assert not is_read_only(over, "/sys/kernel/mm/ksm")
    assert is_read_only(f"{over}3 1 0:2 / /sys ro,nosuid shared:7 - sysfs sysfs rw\n", "/sys/kernel/mm/ksm")
    assert is_read_only(f"{over}3 1 0:2 / /sys/kernel/mm/ksm rw - sysfs sysfs ro\n", "/sys/kernel/mm/ksm")
    assert not is_read_only(f"{over}3 1 0:2 / /sys/kernel/mm/ksmx ro shared:1 - sysfs sysfs rw\n", "/sys/kernel/mm/ksm")
    assert is_read_only("nonsense\n", "/sys/kernel/mm/ksm") is None


def test_of_a_kernels_list_each_is_counted() -> None:
    assert [parse_count(one) for one in ("0\n", "0-1\n", "0-1,4\n", "7")] == [1, 2, 3, 1]
    with pytest.raises(ValueError, match="no list"):
        parse_count("0-\n")


def test_of_the_folders_what_is_kept_is_read_and_faults_are_told_but_nothing_is_made(tmp_path: Path) -> None:
    paths = RuntimePaths(str(tmp_path / "run"), str(tmp_path / "lib"))
    root, agent, state = tmp_path / "run", tmp_path / "run/agent", tmp_path / "lib"

    def state_and_faults() -> tuple[object, tuple[str, ...]]:
        return read_state(URI, paths, Config())

    assert state_and_faults() == (HostState(), ())
    assert not root.exists()
    root.write_text("", encoding="ascii")
    assert state_and_faults()[1][0].endswith("run is not a folder")
    root.unlink()
    agent.mkdir(parents=True)
    state.symlink_to(root)
    assert state_and_faults()[1] == (f"{state} is not a folder",)
    state.unlink()
    root.chmod(0o777)
    assert state_and_faults()[1] == (f"{root} may be written to by other users (mode 0777)",)
    root.chmod(0o755)
    (root / "poke").write_text("", encoding="ascii")
    assert state_and_faults()[1] == (f"{root}/poke is not a FIFO",)
    (root / "poke").unlink()
    os.mkfifo(root / "poke", 0o600)
    kept = HostState(ownership={"pages_to_scan": Ownership(baseline=100, intended=5, applied=5)})
    (agent / "local.json").write_text(dump_host_state(kept), encoding="ascii")
    assert state_and_faults() == (kept, ())
    (agent / "local.json").write_text("{}", encoding="ascii")
    assert state_and_faults()[1] == (f"{agent}/local.json: not a virtksm state of schema 1",)


def test_an_agents_status_without_a_pass_is_as_of_one_that_has_seen_no_guest() -> None:
    status = take(answer_to("status")["status"], ASKED_FOR, "status")
    assert see_agent(status) == status
    seen = see_agent({**status, "last_pass": None, "switched": None})
    assert (seen["last_pass"], seen["switched"]) == (NO_PASS, NONE_SWITCHED)
    (read,) = (one for one in examine(replace(HEALTHY, known_agent=seen)) if one.check == "guests_read")
    assert (read.verdict, read.detail) == ("PASS", "of all 0")


def test_every_fault_of_the_configuration_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "virtksm.toml"
    file.write_text("policy = 7\nnonsense = 1\n", encoding="ascii")
    faults, _, _ = read_config(str(file))
    assert isinstance(faults, tuple)
    assert len(faults) == 2
    file.write_text('[adaptive]\nmerge_across_nodes = "keep"\n', encoding="ascii")
    plain = replace(HEALTHY.config, private_guests=())
    assert read_config(str(file)) == (plain, frozenset({"adaptive.merge_across_nodes"}), (str(file),))
