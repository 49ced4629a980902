"""What the Ansible role promises, claim by claim: real plays over ssh on several Debians booted in containers.

Each has libvirt, and plain files for KSM, so that this machine's is not touched. They share its network, hence a port
each. The claims follow one roll-out in batches, in the middle of which one host fails.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.boot import container
from tests.boot.inside import LIMIT_S, claim, try_claims, wait
from tests.lab.ports import free_port
from tests.lab.signals import end_in_order
from tests.tried import keep_claims
from virtksm.cli.fleet.hosts import find_hosts
from virtksm.errors import VirtksmError

REPO = Path(__file__).resolve().parents[2]
TOOLS = REPO / "build" / "ansible"
PACKAGES = REPO / "build" / "packages" / "deb"
SSH = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
KSM = {
    **dict.fromkeys(("full_scans", "pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "run"), 0),
    **dict.fromkeys(("stable_node_chains", "stable_node_dups", "use_zero_pages"), 0),
    "max_page_sharing": 256,
    "merge_across_nodes": 1,
    "pages_to_scan": 100,
    "sleep_millisecs": 20,
    "stable_node_chains_prune_millisecs": 2000,
}
"""A kernel's after its boot."""
KSMTUNEDS = {"pages_to_scan": 1250, "sleep_millisecs": 10}
THRESHOLD = 35
UNITS = ("virtksm.service", "virtksm-ksm.service")

INVENTORY = """\
lone ansible_host=10.0.0.9
[compute]
web[1:3] ansible_user=root
v6 ansible_host=fe80::1 ansible_port=2222
[gpu]
here ansible_connection=local
web1
[all_compute:children]
compute
gpu
[compute:vars]
ansible_port=2200
"""
LISTED = {
    "": ["10.0.0.9", "root@web1:2200", "", "root@web3:2200", "[fe80::1]:2222", "qemu:///system"],
    "all_compute": ["root@web1:2200", "", "root@web3:2200", "[fe80::1]:2222", "qemu:///system"],
    "gpu": ["qemu:///system", "root@web1:2200"],
    "web2": [""],
}
WEB2 = "qemu+tls://web2/system"
"""What a file of host variables says, where LISTED has nothing."""
SSH_CONFIG = """\
Host *
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    IdentitiesOnly yes
Match user root
    IdentityFile {key}
Match user games
    IdentityFile none
"""


class Host:
    """A container, as its administrator sees it."""

    def __init__(self, name: str, root: Path, folder: Path) -> None:
        self.name, self.port, self.metrics_port = name, free_port(), free_port()
        self.root, self._folder = root, folder
        self._ksm = folder / name / "ksm"

    def boot(self) -> subprocess.Popen[bytes]:
        """Boot it, with a KSM as it is after a machine's boot."""
        self._ksm.mkdir(parents=True)
        self.set_ksm(KSM)
        sshd = f"{REPO}/tests/boot/sshd@.service:/etc/systemd/system/sshd@.service"
        booting = [
            *container.command(f"virtksm-{self.name}", self.root),
            *("--bind", f"{self._ksm}:/sys/kernel/mm/ksm", "--bind-ro", f"{self._folder}/key.pub:/run/key.pub"),
            *("--bind-ro", f"{self._folder}/source:/run/source", "--bind-ro", sshd),
            f"systemd.wants=sshd@{self.port}.service",
        ]
        with (self._folder / self.name / "console").open("wb") as console:
            return subprocess.Popen(booting, stdin=subprocess.DEVNULL, stdout=console, stderr=console)

    def set_ksm(self, values: dict[str, int]) -> None:
        for name, value in values.items():
            (self._ksm / name).write_text(f"{value}\n", encoding="ascii")
        self._set_at_ns = self._written_at_ns()

    def _written_at_ns(self) -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in self._ksm.iterdir()}

    def claim_ksm_untouched(self) -> None:
        """Claim that nothing on it has written to KSM's files since `set_ksm`, not even the same values."""
        written = [name for name, at_ns in self._written_at_ns().items() if at_ns != self._set_at_ns[name]]
        claim(not written, f"{self.name}: somebody has written {written}")

    def ksm(self, name: str) -> int:
        return int((self._ksm / name).read_text(encoding="ascii"))

    def try_run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line of shell on it."""
        options = [word for option in SSH for word in ("-o", option)]
        to = [*options, "-i", f"{self._folder}/key", "-p", str(self.port), "root@127.0.0.1"]
        return subprocess.run(["ssh", *to, command], check=False, capture_output=True, text=True, timeout=2 * LIMIT_S)

    def can(self, command: str) -> bool:
        return self.try_run(command).returncode == 0

    def run(self, command: str) -> str:
        """Run a line of shell on it, and return what it printed; raises NotSo unless it succeeds."""
        done = self.try_run(command)
        claim(done.returncode == 0, f"{self.name}: {command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def status(self, name: str) -> object:
        """Return one of its status' fields."""
        return json.loads(self.run("virtksm status --json"))[name]


class Recap(NamedTuple):
    """How a play ended: its exit code, what it printed, and how many tasks of each host were ok, changed, failed..."""

    code: int
    text: str
    hosts: dict[str, dict[str, int]]

    def hosts_with(self, count: str) -> set[str]:
        return {host for host, counts in self.hosts.items() if counts[count]}

    def claim_ended_well(self) -> None:
        claim(self.code == 0, self.text)

    def claim_failed(self, failed: Host) -> None:
        """Claim that this host failed, and no other."""
        claim(self.code != 0, "the play ended well")
        claim(self.hosts_with("failed") == {failed.name}, self.text)

    def claim_changed(self, *names: str) -> None:
        """Claim that something changed on each of these hosts, and nothing on another."""
        claim(self.hosts_with("changed") == set(names), self.text)


class RollOut:
    """Claims over hosts: `tuned` has ksmtuned, `broken` fails at first, `plain` is newer, `built` gets no package.

    KSM stays off on `plain` at first.
    """

    def __init__(self, hosts: Sequence[Host], folder: Path) -> None:
        self.hosts, self._folder = hosts, folder
        self.tuned, self.broken, self.plain, self.built = hosts
        self.names = [host.name for host in hosts]
        self._role = folder / "source" / "packaging" / "ansible"
        self._configs: dict[str, dict[str, object]] = {host.name: {} for host in hosts}
        self._configs[self.plain.name] = {"policy": "observe"}
        self._switches_ksm_on = {host.name: host is not self.plain for host in hosts}
        readme = (self._role / "README.md").read_text(encoding="utf-8")
        [play] = re.findall(r"```yaml\n(- name.*?)```", readme, re.DOTALL)
        (folder / "site.yml").write_text(play, encoding="utf-8")
        in_small_batches = play.replace("serial: [1, 20]", "serial: [1, 2]")
        (folder / "site-small-batches.yml").write_text(in_small_batches, encoding="utf-8")

    def ansible(self, program: str, *arguments: str) -> str:
        """Run one of Ansible's programs, and return what it printed; raises NotSo unless it succeeds."""
        done = self.try_ansible(program, *arguments)
        claim(done.returncode == 0, done.stdout)
        return done.stdout

    def try_ansible(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of Ansible's programs in the test's folder."""
        own = {
            "ANSIBLE_COLLECTIONS_PATH": f"{self._folder}/collections",
            "ANSIBLE_HOME": f"{self._folder}/home",
            "ANSIBLE_INVENTORY": f"{self._folder}/inventory.json",
            "ANSIBLE_PIPELINING": "1",
            "LC_ALL": "C.UTF-8",
            "PATH": f"{TOOLS}/bin:{os.environ['PATH']}",
        }
        return subprocess.run(
            [TOOLS / "bin" / program, *arguments],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=20 * LIMIT_S,
            cwd=self._folder,
            env=os.environ | own,
        )

    def write_inventory(self) -> None:
        """Write the hosts with the variables that each has by now."""
        [package] = PACKAGES.glob("virtksm_*.deb")
        hosts = {
            host.name: {
                "ansible_port": host.port,
                "virtksm_package": str(package),
                "virtksm_source": "file:///run/source" if host is self.built else "",
                "virtksm_config": {"metrics": {"listen": f"127.0.0.1:{host.metrics_port}"}, **self._configs[host.name]},
                "virtksm_switch_ksm_on": self._switches_ksm_on[host.name],
            }
            for host in self.hosts
        }
        common = {
            "ansible_host": "127.0.0.1",
            "ansible_user": "root",
            "ansible_ssh_private_key_file": f"{self._folder}/key",
            "ansible_ssh_common_args": " ".join(f"-o {option}" for option in SSH),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        inventory = {"kvm": {"hosts": hosts, "vars": common}}
        (self._folder / "inventory.json").write_text(json.dumps(inventory, indent=2), encoding="utf-8")

    def play(self, *options: str, playbook: str = "site.yml") -> Recap:
        """Play, print the recap, and return it."""
        self.write_inventory()
        words = " ".join(["ansible-playbook", *options, playbook])
        began_s = time.monotonic()
        done = self.try_ansible("ansible-playbook", *options, playbook)
        with (self._folder / "plays").open("a", encoding="utf-8") as plays:
            plays.write(f"\n$ {words}\n{done.stdout}")
        recap = done.stdout.partition("PLAY RECAP")[2].partition("\n")[2].strip()
        say(f"$ {words}  ({time.monotonic() - began_s:.0f} s, exit code {done.returncode})\n{recap}")
        lines = re.findall(r"^(\w+) +: (.*)$", recap, re.MULTILINE)
        hosts = {host: {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line)} for host, line in lines}
        claim(hosts, done.stdout)
        return Recap(done.returncode, done.stdout, hosts)

    # --- the claims, in this order ---

    def are_up(self) -> None:
        """four hosts are up, one with a ksmtuned that was tuned and at work, one with its file alone"""
        for host in self.hosts:
            wait(partial(host.can, "true"), f"{host.name}'s ssh")
            host.try_run("systemctl is-system-running --wait")
            host.run("touch /var/lib/apt/lists")  # apt's index is new enough
        self.tuned.run("DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends install ksmtuned")
        self.tuned.run(f"echo KSM_THRES_COEF={THRESHOLD} >>/etc/ksmtuned.conf && systemctl restart ksmtuned")
        wait(partial(self.tuned.can, "test -e /run/ksmtune.pid"), "ksmtuned")
        self.tuned.set_ksm(KSMTUNEDS)
        self.built.run(f"rm -rf /opt/virtksm && echo KSM_THRES_COEF={THRESHOLD} >/etc/ksmtuned.conf")

    def is_installed(self) -> None:
        """ansible-galaxy installs the collection from the git repository"""
        self.ansible("ansible-galaxy", "collection", "install", f"git+file://{self._folder}/source#/packaging/ansible/")

    def is_well_formed(self) -> None:
        """ansible-lint's production profile finds nothing in it, nor the syntax check in the README's play"""
        said = self.ansible("ansible-lint", "--offline", "--nocolor", "--profile=production", str(self._role))
        say(said.strip().splitlines()[-1])
        self.write_inventory()
        self.ansible("ansible-playbook", "--syntax-check", "site.yml")

    def refuses_an_argument(self) -> None:
        """an argument of the wrong type is refused before anything is done"""
        recap = self.play("--extra-vars", json.dumps({"virtksm_config": "adaptive"}))
        claim("Validation of arguments failed" in recap.text, recap.text)
        claim(recap.code != 0, recap.text)
        recap.claim_changed()

    def foretells(self) -> None:
        """check mode on new hosts says that each would change, and changes none"""
        recap = self.play("--check")
        recap.claim_ended_well()
        recap.claim_changed(*self.names)
        for host in self.hosts:
            left = host.run("ls -d /usr/bin/virtksm /var/cache/virtksm.deb /*/virtksm 2>/dev/null || true")
            claim(not left, f"{host.name} has {left}")
        claim(self.tuned.run("systemctl is-active ksmtuned") == "active", "ksmtuned is gone")

    def goes_on(self) -> None:
        """one host fails in the middle of its installation: the recap names it; others, and later batches, are done"""
        self.broken.run("systemd-run --unit=hog flock /var/cache/debconf/config.dat sleep infinity")
        recap = self.play(playbook="site-small-batches.yml")
        recap.claim_failed(self.broken)
        for host in self.hosts:
            is_done = host.can("virtksm status")
            claim(is_done == (host is not self.broken), f"{host.name} is {'done' if is_done else 'not done'}")

    def heals(self) -> None:
        """the same play heals it, and changes nothing elsewhere; check mode says so"""
        self.broken.run("systemctl stop hog")
        for options in (["--check"], []):
            recap = self.play(*options)
            recap.claim_ended_well()
            recap.claim_changed(self.broken.name)

    def leaves_alone(self) -> None:
        """a host that is to observe, with KSM off, does so from the start: nothing ever wrote to KSM"""
        claim(self.plain.status("policy") == "observe", "it does something else")
        claim(not self.plain.can("systemctl is-enabled virtksm-ksm"), "KSM's switch is enabled")
        self.plain.claim_ksm_untouched()

    def starts_nothing(self) -> None:
        """a new host with a fault in its configuration fails; neither agent nor KSM's switch starts, nor at a reboot"""
        self.broken.run("DEBIAN_FRONTEND=noninteractive apt-get -y purge virtksm")
        self.broken.set_ksm(KSM)
        self._configs[self.broken.name] = {"coalesce": 1}
        self.play("--limit", self.broken.name).claim_failed(self.broken)
        self.broken.run("virtksm --version")
        forgets = "rm -rf /run/systemd/system/virtksm* && systemctl daemon-reload"
        self.broken.run(f"{forgets} && systemctl start {' '.join(UNITS)}")  # as a reboot does
        for unit in UNITS:
            claim(not self.broken.can(f"systemctl is-active {unit}"), f"{unit} is active")
        self.broken.claim_ksm_untouched()
        self._configs[self.broken.name] = {}
        self.play("--limit", self.broken.name).claim_ended_well()

    def is_idempotent(self) -> None:
        """the next play changes nothing, nor would it in check mode, and shows each host's status"""
        for options in ([], ["--check"]):
            recap = self.play(*options)
            recap.claim_ended_well()
            recap.claim_changed()
            claim(recap.text.count("0 bytes, paused: False") == len(self.hosts), recap.text)

    def tunes(self) -> None:
        """on every other host KSM is on, agent and switch are active and enabled, and the agent has ksmd idle"""
        for host in (self.tuned, self.broken, self.built):
            for unit in UNITS:
                host.run(f"systemctl is-active {unit} && systemctl is-enabled {unit}")
            found = host.ksm("run"), host.ksm("pages_to_scan")
            claim(found == (1, 0), f"{host.name}: run and pages_to_scan are {found}")

    def takes_over(self) -> None:
        """ksmtuned is gone, its threshold is taken over, and its last values are not what the agent would give back"""
        claim(self.tuned.run("systemctl is-active ksmtuned || true") != "active", "ksmtuned is still there")
        for host in (self.tuned, self.built):
            found = json.loads(host.run("virtksm config show --json"))["adaptive.reserve_percent"]
            claim(found["value"] == THRESHOLD, found)
        owned = json.loads(self.tuned.run("cat /run/virtksm/agent/local.json"))["ownership"]
        claim({name: owned[name]["baseline"] for name in KSMTUNEDS} == {name: KSM[name] for name in KSMTUNEDS}, owned)

    def takes_over_once(self) -> None:
        """the threshold's file that the administrator deletes stays so, also where a checkout is installed"""
        file = "/etc/virtksm/conf.d/10-ksmtuned.toml"
        for host in (self.tuned, self.built):
            host.run(f"test -e /etc/ksmtuned.conf && rm {file} && systemctl reload virtksm")
        recap = self.play()
        recap.claim_ended_well()
        recap.claim_changed()
        for host in (self.tuned, self.built):
            claim(not host.can(f"test -e {file}"), f"{host.name} has {file} again")

    def serves_metrics(self) -> None:
        """every agent serves its metrics where the host's variables say"""
        for host in self.hosts:
            with urllib.request.urlopen(f"http://127.0.0.1:{host.metrics_port}/metrics", timeout=LIMIT_S) as page:
                claim(b"\nvirtksm_saved_bytes" in page.read(), f"{host.name} serves something else")

    def refuses(self) -> None:
        """a fault in one host's configuration fails that host, also in check mode; the old one and the agent stay"""
        state = "systemctl show --property=InvocationID virtksm && cat /etc/virtksm/conf.d/*.toml"
        before = self.plain.run(state)
        self._configs[self.plain.name] = {"coalesce": 1}
        for options in (["--check"], []):
            recap = self.play(*options)
            recap.claim_failed(self.plain)
            recap.claim_changed()
            claim("did you mean coalesce_ms?" in recap.text, recap.text)
        claim(self.plain.run(state) == before, "the agent or its configuration is another")

    def reloads(self) -> None:
        """a valid one reaches the agent that runs, and KSM is switched on when that is wanted"""
        agent = "systemctl show --property=InvocationID virtksm"
        before = self.plain.run(agent)
        self._configs[self.plain.name] = {"policy": "ksmtuned"}
        self._switches_ksm_on[self.plain.name] = True
        recap = self.play()
        recap.claim_ended_well()
        recap.claim_changed(self.plain.name)
        wait(lambda: self.plain.status("policy") == "ksmtuned", "the agent to reload")
        claim(self.plain.run(agent) == before, "it is another agent")
        claim(self.plain.ksm("run") == 1, "KSM is off")

    def pauses(self) -> None:
        """pause and resume change each host once; check mode says so, and does neither"""
        for entry, paused in (("pause", True), ("resume", False)):
            include = {"name": "virtksm.virtksm.virtksm", "tasks_from": entry}
            play = {"hosts": "kvm", "tasks": [{"name": entry, "ansible.builtin.include_role": include}]}
            (self._folder / f"{entry}.yml").write_text(json.dumps([play]), encoding="utf-8")
            for options, changed, now in (
                (["--check"], self.names, not paused),
                ([], self.names, paused),
                ([], [], paused),
            ):
                recap = self.play(*options, playbook=f"{entry}.yml")
                recap.claim_ended_well()
                recap.claim_changed(*changed)
                claim({host.status("paused") for host in self.hosts} == {now}, f"{entry} {options}: not all are {now}")

    def reads_inventories(self) -> None:
        """virtksm has the hosts that ansible-inventory lists, with their addresses; a broken inventory is refused"""
        folder = self._folder / "inventory"
        (folder / "host_vars").mkdir(parents=True)
        (folder / "hosts.ini").write_text(INVENTORY, encoding="ascii")
        (folder / "host_vars" / "web2.yml").write_text(f"virtksm_uri: {WEB2}\n", encoding="ascii")
        os.environ["PATH"] = f"{TOOLS}/bin:{os.environ['PATH']}"
        for limit, listed in LISTED.items():
            found = [host.uri for host in find_hosts((), None, str(folder), limit or None)]
            wanted = [one if ":///" in one else f"qemu+ssh://{one}/system" if one else WEB2 for one in listed]
            claim(found == wanted, f"{limit or 'all'}: {found}, not {wanted}")
        (folder / "more.yml").write_text("all:\n  hosts: [\n", encoding="ascii")
        try:
            found = [host.uri for host in find_hosts((), None, str(folder), None)]
        except VirtksmError as error:
            claim("more.yml" in error.message, error.message)
        else:
            claim(False, f"of a broken file nothing is said: {found}")

    def asks(self) -> None:
        """virtksm fleet asks all over ssh, also Debian 13's; a host that wants a password is named, and asks nobody"""
        programs = self._folder / "bin"
        programs.mkdir()
        (self._folder / "ssh_config").write_text(SSH_CONFIG.format(key=self._folder / "key"), encoding="utf-8")
        for name, line in {
            "ssh": f'exec /usr/bin/ssh -F {self._folder}/ssh_config "$@"',
            "askpass": f"echo asked >>{self._folder}/asked",
        }.items():
            (programs / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
            (programs / name).chmod(0o755)
        (self._folder / "virtksm.toml").touch()
        folders = [f"--{one}-dir={self._folder}/{one}" for one in ("runtime", "state")]
        words = [
            "--inventory=inventory.json",
            f"--connect=qemu+ssh://games@127.0.0.1:{self.plain.port}/system",
            "--json",
        ]
        done = subprocess.run(
            [Path(sys.executable).with_name("virtksm"), "--config=virtksm.toml", *folders, "fleet", "status", *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_S,
            cwd=self._folder,
            env={
                **os.environ,
                "PATH": f"{programs}:{TOOLS}/bin:{os.environ['PATH']}",
                "DISPLAY": ":0",
                "SSH_ASKPASS": f"{programs}/askpass",
            },
        )
        claim(done.returncode == 3, f"it ended with {done.returncode}: {done.stdout}{done.stderr}")
        stranger, *hosts = json.loads(done.stdout)["hosts"]
        claim("the host accepts no key" in str(stranger["error"]), stranger)
        claim(f"ssh-copy-id -p {self.plain.port} games@127.0.0.1" in str(stranger["remedy"]), stranger)
        claim(not (self._folder / "asked").exists(), "a window would have opened")
        claim([one["host"] for one in hosts] == self.names, hosts)
        for one, host in zip(hosts, self.hosts, strict=True):
            claim(one["exit_code"] == 0, one)
            claim(one["answer"]["now"]["settings"]["pages_to_scan"] == host.ksm("pages_to_scan"), one)

    def claims(self) -> tuple[Callable[[], None], ...]:
        return (
            self.are_up,
            self.is_installed,
            self.is_well_formed,
            self.refuses_an_argument,
            self.foretells,
            self.goes_on,
            self.heals,
            self.leaves_alone,
            self.starts_nothing,
            self.is_idempotent,
            self.tunes,
            self.takes_over,
            self.takes_over_once,
            self.serves_metrics,
            self.refuses,
            self.reloads,
            self.pauses,
            self.reads_inventories,
            self.asks,
        )


def here(hosts: Sequence[Host]) -> str:
    """Return what is on the hosts, as cells of the table in docs/tried.md."""
    cells: list[list[str]] = [[], [], []]
    for root in dict.fromkeys(host.root for host in hosts):
        release = (root / "etc" / "os-release").read_text(encoding="utf-8")
        ask = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", "--showformat=${Version}\n"]
        told = subprocess.run([*ask, "libvirt-daemon", "python3"], check=True, capture_output=True, text=True).stdout
        found = [re.findall(r'^VERSION_ID="?(\d+)', release, re.MULTILINE)[0]]
        for cell, version in zip(cells, [*found, *(line.partition("-")[0] for line in told.split())], strict=True):
            if version not in cell:
                cell.append(version)
    debian, libvirt, python = (", ".join(cell) for cell in cells)
    return f"Debian {debian} | {os.uname().release} | libvirtd {libvirt} | {python}"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Boot the hosts and try the claims; what these and the plays say is left in FOLDER. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.boot.ansible", description=__doc__)
    parser.add_argument("packaged", type=Path, metavar="ROOT", help="what a host with packages boots")
    parser.add_argument("newer", type=Path, metavar="ROOT", help="what one with those of the next Debian boots")
    parser.add_argument("built", type=Path, metavar="ROOT", help="what one boots that can build a virtual environment")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with the repository in FOLDER/source")
    options = parser.parse_args(arguments)
    end_in_order()
    folder = options.folder.resolve()
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", folder / "key"], check=True)
    roots = (options.packaged, options.packaged, options.newer, options.built)
    hosts = [Host(f"node{number}", root.resolve(), folder) for number, root in enumerate(roots, 1)]
    report = folder / "report"
    with ExitStack() as stack, report.open("w", encoding="utf-8", buffering=1) as kept:
        stack.callback(keep_claims, "ansible", report)

        def write(text: str) -> None:
            kept.write(text)
            say(text.rstrip("\n"))

        write(f"here    {here(hosts)}\n")
        for host in hosts:
            stack.callback(container.end, host.boot())
        return try_claims(RollOut(hosts, folder).claims(), write)


if __name__ == "__main__":
    raise SystemExit(main())
