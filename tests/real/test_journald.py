"""What a real systemd-journald keeps of the agent's entries; it has /run of its own, in a mount namespace."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.real

ALONE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
"""With the shell, journald ends."""
WITH_JOURNALD = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nAudit=no\\n' >/run/systemd/journald.conf.d/alone.conf
/usr/lib/systemd/systemd-journald 2>/dev/null &
until [ -S /run/systemd/journal/socket ]; do sleep 0.05; done
"$0" -c "$1"
read_entries() { journalctl --directory=/run/log/journal --quiet --output=json SYSLOG_IDENTIFIER=virtksm; }
until [ "$(read_entries | wc -l)" = 2 ]; do sleep 0.05; done
read_entries
"""
LOG = """
import sys
from virtksm.log_setup import LineQueue, configure, get_logger
lines = LineQueue(sys.stderr)
configure("info", "journal", stream=lines)
get_logger().info("event_received", message="web-4 started", guest="web\\n4", sensed={"saved_kib": 1})
get_logger().error("pass_failed", message="the pass failed", much=["x" * 100] * 2000)
lines.close(30.0)
"""


def test_it_has_the_sentence_as_its_message_and_each_field_whole() -> None:
    done = subprocess.run(
        [*ALONE, "sh", "-c", WITH_JOURNALD, sys.executable, LOG],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    event, failure = (json.loads(line) for line in done.stdout.splitlines())
    own = {name: value for name, value in event.items() if name.startswith(("MESSAGE", "PRIORITY", "VIRTKSM_"))}
    assert own == {
        "MESSAGE": "web-4 started",
        "PRIORITY": "6",
        "VIRTKSM_EVENT": "event_received",
        "VIRTKSM_GUEST": r"web\n4",
        "VIRTKSM_SENSED": '{"saved_bytes": 1024}',
    }
    assert (failure["MESSAGE"], failure["PRIORITY"], failure["VIRTKSM_EVENT"]) == (
        "the pass failed",
        "3",
        "pass_failed",
    )
