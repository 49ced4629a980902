"""`virtksm unmerge --merge-across-nodes`: its steps in order, what it refuses, and that KSM is on again after it."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes import FakeFacts, FakeHypervisor
from virtksm.cli.layout import to_lines
from virtksm.cli.main import parse
from virtksm.cli.nodes import change_here, change_nodes, nodes_rows, set_nodes
from virtksm.config.schema import AdaptiveParams, Config
from virtksm.errors import Cause, ExitCode, LibvirtUnreachable, SettingsRefused, Unsupported, VirtksmError
from virtksm.host.local_facts import ProcFacts
from virtksm.model.snapshot import KsmState, Settings
from virtksm.values import replace


@dataclass
class Kernel:
    """KSM's files, and the command's steps upon them, in the order in which they came; `failing` ones fail."""

    folder: Path
    steps: list[str] = field(default_factory=list)
    failing: tuple[str, ...] = ()
    agent_sets: int | None = None
    """The value that the agent's pass sets, by its configuration."""

    def write(self, **values: int) -> None:
        for name, value in values.items():
            (self.folder / name).write_text(f"{value}\n", encoding="ascii")

    def read(self, name: str) -> int:
        return int((self.folder / name).read_text(encoding="ascii"))

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name in self.failing:
            raise LibvirtUnreachable(f"{name} failed")

    def unmerge(self) -> None:
        self.step("unmerge")
        self.write(run=2, pages_shared=0, pages_sharing=0)

    def retune(self) -> None:
        self.step("retune")
        if self.agent_sets is not None:
            self.write(merge_across_nodes=self.agent_sets)

    def set_value(self, value: int) -> None:
        self.step(f"set {value}")
        assert self.read("pages_shared") == 0
        self.write(merge_across_nodes=value)

    def start(self, unit: str) -> int:
        self.steps.append(f"start {unit}")
        if "start" in self.failing:
            return 1
        self.write(run=1)
        return 0

    def change(self, wanted: str = "never", config: Config | None = None) -> None:
        facts = ProcFacts(lambda: 0.0, sys_ksm=str(self.folder))
        change_nodes(
            wanted,
            config or Config(),
            facts,
            unmerge=self.unmerge,
            retune=self.retune,
            set_value=self.set_value,
            start=self.start,
        )


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    kernel = Kernel(tmp_path)
    kernel.write(pages_shared=5, pages_sharing=9, ksm_zero_pages=0, run=1, merge_across_nodes=1, pages_to_scan=0)
    return kernel


ON = "start virtksm-ksm.service"


def test_all_is_unmerged_the_policy_learns_of_it_the_value_is_set_and_ksm_is_on_again(kernel: Kernel) -> None:
    kernel.change()
    assert kernel.steps == ["unmerge", "retune", "set 0", ON, "retune"]
    assert (kernel.read("merge_across_nodes"), kernel.read("run")) == (0, 1)
    kernel.steps.clear()
    kernel.change()
    assert kernel.steps == [], "it is so already"
    kernel.change("always")
    assert kernel.steps == ["set 1"], "nothing was merged"


def test_a_pass_that_sets_the_value_itself_is_left_to_it(kernel: Kernel) -> None:
    kernel.agent_sets = 0
    kernel.change(config=Config(adaptive=AdaptiveParams(merge_across_nodes="never")))
    assert kernel.steps == ["unmerge", "retune", ON, "retune"]


def test_ksm_that_was_off_stays_off(kernel: Kernel) -> None:
    kernel.write(run=0)
    kernel.change()
    assert kernel.steps == ["unmerge", "retune", "set 0"]
    assert kernel.read("run") == 2


@pytest.mark.parametrize(
    ("failing", "steps"), [("unmerge", ["unmerge"]), ("set 0", ["unmerge", "retune", "set 0", ON, "retune"])]
)
def test_after_a_failure_ksm_is_on(kernel: Kernel, failing: str, steps: list[str]) -> None:
    kernel.failing = (failing,)
    with pytest.raises(LibvirtUnreachable, match=failing):
        kernel.change()
    assert (kernel.steps, kernel.read("run"), kernel.read("merge_across_nodes")) == (steps, 1, 1)


def test_a_pass_that_fails_is_a_warning(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    kernel.failing = ("retune",)
    kernel.change()
    assert kernel.steps == ["unmerge", "retune", "set 0", ON, "retune"]
    first, last = capsys.readouterr().err.splitlines()
    assert first == last == "virtksm: warning: no pass was possible, a later one does its work: retune failed"


@pytest.mark.parametrize(("also", "said"), [((), "KSM is off"), (("set 0",), "set 0 failed, and KSM is off")])
def test_ksm_that_does_not_come_on_again_is_a_failure_that_names_the_remedy(
    kernel: Kernel, also: tuple[str, ...], said: str
) -> None:
    kernel.failing = ("start", *also)
    with pytest.raises(VirtksmError) as off:
        kernel.change()
    assert (off.value.message, off.value.exit_code) == (f"{said}: virtksm-ksm.service has failed", ExitCode.FAILED)
    assert off.value.remedy == "systemctl restart virtksm-ksm.service"
    assert kernel.steps == ["unmerge", "retune", "set 0", ON, "retune"]


def test_what_the_configuration_or_the_kernel_forbids_is_refused_before_anything_is_done(kernel: Kernel) -> None:
    params = AdaptiveParams(merge_across_nodes="always")
    with pytest.raises(VirtksmError, match="the policy would set that again") as refused:
        kernel.change(config=Config(adaptive=params))
    assert 'adaptive.merge_across_nodes = "never"' in refused.value.remedy
    (kernel.folder / "merge_across_nodes").unlink()
    with pytest.raises(Unsupported):
        kernel.change()
    assert kernel.steps == []
    kernel.write(merge_across_nodes=1)
    kernel.change(config=Config(policy="ksmtuned", adaptive=params))
    assert "set 0" in kernel.steps, "the key is another policy's"


def test_the_value_goes_through_libvirt_and_a_refusal_names_its_cause() -> None:
    hypervisor, facts = FakeHypervisor(), FakeFacts()
    set_nodes(hypervisor, facts, 0)
    assert hypervisor.calls == [{"merge_across_nodes": 0}]
    set_nodes(hypervisor, facts, 0)
    assert len(hypervisor.calls) == 1
    hypervisor.pages_shared = 1
    with pytest.raises(SettingsRefused) as refused:
        set_nodes(hypervisor, facts, 1)
    assert refused.value.cause is Cause.PAGES_SHARED
    assert "virtksm unmerge --merge-across-nodes" in refused.value.remedy


KSM = KsmState(settings=Settings(pages_to_scan=0, sleep_millisecs=20, merge_across_nodes=0), run=1)


@pytest.mark.parametrize(
    ("ksm", "config", "said"),
    [
        (KSM, Config(), 'until the next boot; adaptive.merge_across_nodes = "never" keeps it'),
        (KSM, Config(policy="ksmtuned"), "until the next boot; a line of tmpfiles.d keeps it: w /sys/"),
        (KSM, Config(adaptive=AdaptiveParams(merge_across_nodes="never")), "merge_across_nodes is 0: each NUMA node"),
        (replace(KSM, run=2), Config(), "off (run is 2): nothing merges"),
    ],
)
def test_it_says_what_is_set_and_for_how_long(ksm: KsmState, config: Config, said: str) -> None:
    lines = to_lines(nodes_rows(ksm, config))
    assert any(said in line for line in lines), lines
    assert ("until the next boot" in "".join(lines)) == (config.adaptive.merge_across_nodes == "keep")


def test_the_command_s_own_pass_and_setting_go_to_the_libvirt_that_it_names(
    kernel: Kernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--config", "/dev/null", "--runtime-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "lib")]
    uri = "qemu:///system?socket=/nonexistent/socket"
    options = parse(["unmerge", "--merge-across-nodes", "never", "--connect", uri, *folders])
    facts = ProcFacts(lambda: 0.0, sys_ksm=str(kernel.folder))
    with pytest.raises(LibvirtUnreachable):
        change_here(options, facts, unmerge=kernel.unmerge, start=kernel.start)
    assert (kernel.steps, kernel.read("run")) == (["unmerge", ON], 1)
    warnings = capsys.readouterr().err.splitlines()
    assert len([one for one in warnings if "no pass was possible" in one and "/nonexistent/socket" in one]) == 2
