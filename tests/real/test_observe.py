"""The policy observe on the real kernel: others set KSM, the kernel's advisor too, and nothing of theirs is touched."""

from contextlib import ExitStack

import pytest

from bench.sim.real_memory import MergeableProcess
from demo.guests import PayloadGuest
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, wait_until
from tests.real.agent_process import UNSETTLED_LAW, AgentFactory
from tests.real.test_agent_conflict import virsh_sets

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

OBSERVING_LAW = UNSETTLED_LAW.replace("adaptive", "observe", 1)


@pytest.mark.needs("advisor_mode")
def test_it_follows_what_others_have_ksmd_scan_and_sets_nothing(ksm: Ksm, start_agent: AgentFactory) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(MergeableProcess(PayloadGuest(name="", memory_mib=64, common_mib=48)))
        agent = start_agent(OBSERVING_LAW)

        def is_due() -> bool:  # up to Linux 6.12 a process is known only once ksmd has come by
            line = agent.reload()
            assert (line["outcome"], line["changed"]) == ("observed", {})
            return str(line["decision"]["reason"]).startswith("would begin a full scan of ")

        wait_until(is_due, HANG_S, "a full scan to be due")
        virsh_sets(agent.uri, 777)
        assert agent.step()["outcome"] == "observed"
        assert ksm.settings() == (777, 20)
        ksm.write(advisor_mode="scan-time")
        assert agent.step()["outcome"] == "observed"
        assert ksm.read("sleep_millisecs") == 20
        ksm.write(advisor_mode="none", pages_to_scan=5000)
        wait_until(lambda: agent.step()["decision"]["rule"] == "idle", HANG_S, "the kernel to have scanned all")
        assert ksm.read("pages_sharing") > 0
        done = agent.home.run("explain", "--last", "100", "--connect", agent.uri)
        assert "observed\n" in done.stdout
        assert "would begin a full scan of" in done.stdout
        assert agent.home.run("pause", "--connect", agent.uri).returncode == 0
        assert agent.stop() == 0
        assert ksm.settings() == (5000, 20)
    assert agent.lines("settings_refused") == agent.lines("foreign_value_found") == []
    assert agent.home.run("restore", "--connect", agent.uri).stdout.startswith("nothing to do: policy observe")
