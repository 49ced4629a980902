"""The DaemonSet's pod in containers, by podman: its own libvirt has no guest, and guests run under another one.

As under KubeVirt, where each pod of a guest has a libvirt. script/test kubernetes builds the image, checks the manifest
against Kubernetes' schemas and leaves it here as JSON. podman has no sidecars: they are containers, ended in
Kubernetes' order.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.hang import HANG_S
from tests.lab.ksm import IDLE, KSM_ROOT, Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import SWEEPING_LAW

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

REPO = Path(__file__).resolve().parents[2]
MANIFEST = REPO / "build" / "kubernetes" / "virtksm.json"
BASELINE = (123, 45)
COMMON_MIB = 16
LABEL = re.compile(
    r"# \+expiry-time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\nfeature\.node\.kubernetes\.io/virtksm-room-gib=\d+\n"
)


def podman(*arguments: str) -> str:
    """Run podman and return what it printed, an agent's log on standard error, too; fails unless it succeeds."""
    environment = {**os.environ, "CONTAINERS_CONF": str(Path(__file__).with_name("containers.conf"))}
    command = ["podman", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S, env=environment)
    assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout or done.stderr


class Pod:
    """The pod as podman runs it; of the host's folders it has KSM's own, and for the rest some of `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        config_map, daemon_set = (one for one in json.loads(MANIFEST.read_text()) if one["kind"] != "Namespace")
        config_map["data"] = {"10-cluster.toml": SWEEPING_LAW}
        spec: dict[str, Any] = daemon_set["spec"]["template"]["spec"]
        assert spec["hostPID"]
        sidecars = [one for one in spec["initContainers"] if one.pop("restartPolicy", "") == "Always"]
        spec["initContainers"] = [one for one in spec["initContainers"] if one not in sidecars]
        spec["containers"] = [*sidecars, *spec["containers"]]
        for volume in spec["volumes"]:
            place = volume.get("hostPath", {"path": str(KSM_ROOT)})
            if place["path"] != str(KSM_ROOT):
                place["path"] = str(home / volume["name"])
        stays = {
            "io.podman.annotations.init.container.type": "always"
        }  # podman removes one too early on a busy machine
        metadata = {"name": "virtksm", "annotations": stays}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self._manifest = home / "pod.yaml"
        self._manifest.write_text("\n---\n".join(map(json.dumps, (config_map, pod))))

    def start(self) -> None:
        podman("kube", "play", "--network", "none", str(self._manifest))

    def run(self, container: str, *command: str) -> str:
        return podman("exec", f"virtksm-{container}", *command)

    def passes(self) -> list[dict[str, Any]]:
        """Return what the agent has logged of its passes."""
        lines = map(json.loads, podman("logs", "virtksm-agent").splitlines())
        return [line for line in lines if line["event"] == "pass_completed"]

    def stop(self, container: str) -> None:
        podman("stop", "--time", "40", f"virtksm-{container}")

    def remove(self) -> None:
        for container in ("libvirt", "agent"):  # pytest shows it with a test that fails
            subprocess.run(["podman", "logs", f"virtksm-{container}"], check=False)
        podman("pod", "rm", "--force", "--ignore", "--time", "0", "virtksm")
        podman("volume", "rm", "--force", "libvirt", "virtksm")


@pytest.fixture
def pod(ksm: Ksm, tmp_path: Path) -> Iterator[Pod]:
    ksm.write(run=0, pages_to_scan=BASELINE[0], sleep_millisecs=BASELINE[1])
    pod = Pod(tmp_path)
    try:
        yield pod
    finally:
        pod.remove()


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Guests of small pages: merged pages are counted here."""
    return small_pages_libvirtd


def twin(seed: int) -> PayloadGuest:
    return PayloadGuest(name=f"twin{seed}", memory_mib=32, common_mib=COMMON_MIB, own_mib=8, seed=seed)


def test_guests_of_another_libvirt_merge_and_what_was_found_is_given_back(
    ksm: Ksm, pod: Pod, guest: GuestFactory
) -> None:
    guest.together(*map(twin, (1, 2)))
    pod.start()
    wait_until(lambda: ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB, HANG_S, "guests to merge")
    wait_until(lambda: ksm.settings() == IDLE, HANG_S, "ksmd to be idle")
    assert ksm.read("run") == 1
    numbers = pod.passes()[-1]["decision"]["numbers"]
    assert numbers["guests"] == 0
    assert numbers["other_processes_bytes"] >= 2 * twin(1).content_mib << 20
    status = json.loads(pod.run("agent", "virtksm", "status", "--json"))
    label = pod.home / "features" / "virtksm"
    wait_until(label.exists, HANG_S, "the label")
    assert LABEL.fullmatch(label.read_text())
    assert status["room_bytes"]["safe"] > 0
    pod.stop("agent")
    assert ksm.settings() == BASELINE
    pod.stop("libvirt")


def test_a_pause_outlives_the_pod_and_nothing_merged_is_proved(ksm: Ksm, pod: Pod, guest: GuestFactory) -> None:
    guest.together(*map(twin, (1, 2)))
    pod.start()
    wait_until(lambda: ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB, HANG_S, "guests to merge")
    pod.run("agent", "virtksm", "pause")
    pod.run("libvirt", "sh", "-c", f"echo 2 >{KSM_ROOT}/run")
    pod.run("agent", "virtksm", "verify-off")
    pod.stop("agent")
    pod.remove()
    pod.start()
    wait_until(lambda: bool(pod.passes()), HANG_S, "a pass")
    pod.run("agent", "virtksm", "verify-off")
    assert ksm.read("run") == 2
