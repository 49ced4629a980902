"""The folders' layout: where an agent, the one-shot and the hook find each other. Paths only, no I/O.

    /run/virtksm/             root's, 0755: the agent's user can replace nothing here
        poke                  FIFO that the qemu hook writes to
        agent/                the agent's own (systemd: RuntimeDirectory=virtksm/agent)
            agent.lock        held while an agent runs
            control.sock      requests to the agent: root's and its own user's
            status.sock       queries of the configuration's status_group, if it names one
            coalesce.lock     held by the one-shot that waits for hooks
            HOST.lock         held during a pass on that host
            HOST.json         baseline, intended and applied settings, the policy's state
            HOST.merging.json which guests may merge other than they were started
    /var/lib/virtksm/         survives reboots
        HOST.off              exists while virtksm is paused for that host
        HOST.history          that host's last day, for people

HOST is `local` for every connection to this machine's own kernel, else the connection's URI.
"""

from __future__ import annotations

DEFAULT_RUNTIME_DIR = "/run/virtksm"
DEFAULT_STATE_DIR = "/var/lib/virtksm"

LOCAL = "local"
"""HOST for this machine's own kernel."""

_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.")


class RuntimePaths:
    """The names below one runtime folder and one state folder.

    With another runtime folder alone, the machine's switch still counts.
    """

    def __init__(self, root: str = DEFAULT_RUNTIME_DIR, state_dir: str = DEFAULT_STATE_DIR) -> None:
        self.root = root
        self.poke_fifo = f"{root}/poke"
        self.agent_dir = f"{root}/agent"
        self.agent_lock = f"{self.agent_dir}/agent.lock"
        self.control_socket = f"{self.agent_dir}/control.sock"
        self.status_socket = f"{self.agent_dir}/status.sock"
        self.coalesce_lock = f"{self.agent_dir}/coalesce.lock"
        self.state_dir = state_dir

    def host_lock(self, host: str) -> str:
        return f"{self.agent_dir}/{host}.lock"

    def host_state(self, host: str) -> str:
        return f"{self.agent_dir}/{host}.json"

    def host_choices(self, host: str) -> str:
        return f"{self.agent_dir}/{host}.merging.json"

    def host_history(self, host: str) -> str:
        return f"{self.state_dir}/{host}.history"

    def host_switch(self, host: str) -> str:
        return f"{self.state_dir}/{host}.off"


def host_key(uri: str, *, local: bool) -> str:
    """Return the file name for the host behind `uri`; bytes outside [A-Za-z0-9.-] become _XX."""
    if local:
        return LOCAL
    return "".join(char if char in _SAFE else "".join(f"_{byte:02x}" for byte in char.encode()) for char in uri)
