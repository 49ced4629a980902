"""A virtksm that waits for nobody longer than a second, or SLOWER: the limits that no key sets are up to a minute."""

from tests.lab.hang import SLOWER
from virtksm.cli import ask_agent, pause, retune, status_alone
from virtksm.cli.main import run_program
from virtksm.doctor.reading import libvirt
from virtksm.store import state


def hurry() -> None:
    ask_agent.ANSWER_WITHIN_S = retune.ANSWER_WITHIN_S = state.LOCK_WAIT_S = 1.0 * SLOWER
    status_alone.LIMIT_S = libvirt.ANSWER_WITHIN_S = 1.0 * SLOWER
    pause.SLACK_S = 0.0


if __name__ == "__main__":
    hurry()
    run_program()
