"""How a command queries the agent: at the control socket, or at the readers' socket where that is closed to it."""

from __future__ import annotations

from virtksm.errors import VirtksmError, reason_of
from virtksm.paths import RuntimePaths
from virtksm.uri import named_uri

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    from virtksm.cli.answers import Shape

    Taken = TypeVar("Taken")

ANSWER_WITHIN_S = 10.0
OF_ONE_VERSION = "the agent may be of another version: systemctl restart virtksm"


class MayNotAsk(VirtksmError):
    """The agent, if one runs, is not for this user to ask."""


def ask_agent(paths: RuntimePaths, request: dict[str, object]) -> dict[str, object] | None:
    """Return the agent's answer to a query (`status`, `history`, `decisions`), None if no agent runs.

    Raises VirtksmError if it does not answer, or if this user may not ask.
    """
    from virtksm.agent.control_client import ask

    try:
        try:
            return ask(paths.control_socket, request, timeout_s=ANSWER_WITHIN_S)
        except PermissionError:
            answer = ask(paths.status_socket, request, timeout_s=ANSWER_WITHIN_S)
    except PermissionError:
        answer = None
    except (OSError, ValueError) as error:
        raise no_answer(error) from error
    if answer is None:
        raise MayNotAsk(
            "you may not ask the agent",
            remedy="run this with sudo, or as a member of the group that status_group names",
        )
    return answer


def no_answer(error: Exception, remedy: str = "systemctl status virtksm") -> VirtksmError:
    """Return the error for an agent that listens, and does not answer."""
    return VirtksmError(f"the agent does not answer: {reason_of(error)}", remedy=remedy)


def ask_serving(paths: RuntimePaths, uri: str | None, request: dict[str, object]) -> dict[str, object] | None:
    """Return the answer of the agent that serves the host behind `uri`; None if none does. Raises as `ask_agent`.

    Where the user has named no host (None, and no LIBVIRT_DEFAULT_URI), any agent's answer is returned.
    """
    uri = named_uri(uri)
    answer = ask_agent(paths, request if uri is None else {**request, "uri": uri})
    return None if answer is None or "other_uri" in answer else answer


def take_answer(answer: dict[str, object], name: str, shape: Shape) -> dict[str, Any]:
    """Return the answer under `name` as an object of that shape (cli/answers.py); raises VirtksmError."""
    from virtksm.cli.answers import take

    taken: dict[str, Any] = understand(answer, name, lambda value: take(value, shape, name))
    return taken


def understand(answer: Mapping[str, object], name: str, parse: Callable[[object], Taken]) -> Taken:
    """Return the answer under `name` as `parse` takes it; raises VirtksmError for a ValueError, or if there is none."""
    if name not in answer:
        raise VirtksmError(f"the agent answers: {answer.get('error', 'nothing')}", remedy=OF_ONE_VERSION)
    try:
        return parse(answer[name])
    except ValueError as error:
        raise VirtksmError(f"the agent's {name} cannot be understood: {error}", remedy=OF_ONE_VERSION) from error
