"""The policies by name. A policy's module is imported only when the configuration chooses it.

See base.py for what a policy is, docs/policies.md for their laws, CONTRIBUTING.md for how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imports are start-up time, and the one-shot counts it
    from virtksm.config.schema import Config
    from virtksm.policy.base import Policy

# Any: each policy's state is a type of its own, and which policy it is shows at run time only. The caller
# hands a policy its state back unseen.


def _ksmtuned(config: Config) -> Policy[Any]:
    from virtksm.policy.ksmtuned import KsmtunedPolicy  # only the chosen one costs

    return KsmtunedPolicy(params=config.ksmtuned)


def _adaptive(config: Config) -> Policy[Any]:
    from virtksm.policy.adaptive import AdaptivePolicy

    return AdaptivePolicy(params=config.adaptive)


def _observe(config: Config) -> Policy[Any]:
    from virtksm.policy.observe import ObservePolicy

    return ObservePolicy(params=config.adaptive)


POLICIES: Mapping[str, Callable[[Config], Policy[Any]]] = {
    "ksmtuned": _ksmtuned,
    "adaptive": _adaptive,
    "observe": _observe,
}
"""What builds each policy; the configuration's key `policy` has these choices (a test holds them equal)."""


def make_policy(config: Config) -> Policy[Any]:
    """Build the policy that the configuration chooses; a name that its schema admits is always known here."""
    return POLICIES[config.policy](config)
