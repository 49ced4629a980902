"""What the package promises with two NUMA nodes, memory that is plugged in, and libvirt's access driver `polkit`."""

import shutil
from pathlib import Path

from tests.boot.inside import (
    CHECKOUT,
    Claims,
    claim,
    claim_verdict,
    doctor,
    has_merged,
    is_idle,
    ksm,
    log,
    report,
    retune,
    run,
    start_guest,
    wait,
    wait_logged,
)
from tests.boot.machine import installed, stops

FINE_GRAINED = Path("/usr/share/doc/virtksm/examples/50-virtksm-fine-grained.rules")
PLUGGED_BYTES = 256 << 20


def doubts_what_is_hidden() -> None:
    """`virtksm verify-off` doubts what NUMA balancing hides on Linux 6.1, until that is off"""
    balancing = "numa_balancing=0"
    said = run("virtksm", "verify-off", fails=True)
    claim(balancing in said, said)
    run("sysctl", f"kernel.{balancing}")
    said = run("virtksm", "verify-off", fails=True)
    claim(balancing not in said, said)


def merges_across() -> None:
    """guests of two nodes merge with each other, and `virtksm doctor` warns of it"""
    for node in (0, 1):
        start_guest(f"boot{node}", node=node)
    wait(lambda: has_merged(2), "merged pages")
    wait(is_idle, "being idle")
    claim_verdict("numa", "WARN")


def keeps_apart() -> None:
    """`virtksm unmerge --merge-across-nodes never`: only guests of one node merge with each other from then on"""
    said = run("virtksm", "unmerge", "--merge-across-nodes", "never")
    claim((ksm("merge_across_nodes"), ksm("run")) == (0, 1), said)
    claim(not has_merged(2), said)
    start_guest("boot2", node=0)
    wait(lambda: has_merged(2), "merged pages of node 0")
    wait(is_idle, "being idle")
    claim(not has_merged(3), ksm("pages_sharing"))
    claim_verdict("numa", "PASS")


def sees_plugged_memory() -> None:
    """memory that is plugged in counts from the next pass on"""
    before = retune()["sensed"]["total_bytes"]
    [module] = CHECKOUT.glob("build/vm/*/virtio_mem.ko")
    run("insmod", str(module))
    wait(lambda: retune()["sensed"]["total_bytes"] >= before + PLUGGED_BYTES, "the memory")


def with_the_fine_rules() -> None:
    """libvirt's access driver `polkit` and 50-virtksm-fine-grained.rules: the agent tunes, and is denied the rest"""
    shutil.copy(FINE_GRAINED, "/etc/polkit-1/rules.d/")
    with Path("/etc/libvirt/libvirtd.conf").open("a", encoding="ascii") as conf:
        conf.write('access_drivers = ["polkit"]\n')
    seen = log()
    run("systemctl", "restart", "polkit.service")
    run("systemctl", "restart", "libvirtd.service")
    wait_logged("pass_completed.*connected", seen)
    claim(doctor("virtksm")["permission"] == "PASS", "doctor says that the agent's user may not set")
    run("virsh", "destroy", "boot1")
    wait_logged("pass_completed.*stopped", seen)
    said = run("virsh", "--connect", "qemu:///system", "net-list", fails=True, user="virtksm")
    claim("access denied" in said, said)


CLAIMS: Claims = (
    installed,
    doubts_what_is_hidden,
    merges_across,
    keeps_apart,
    sees_plugged_memory,
    with_the_fine_rules,
    stops,
)


if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
