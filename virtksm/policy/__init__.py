"""The policies by name. A policy's module is imported only when the configuration chooses it.

See base.py for what a policy is, docs/policies.md for their laws, CONTRIBUTING.md for how to add one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imports are start-up time, and the one-shot counts it
    from virtksm.config.schema import Config
    from virtksm.policy.base import Policy


def make_policy(config: Config) -> Policy[Any]:
    """Build the policy that the configuration chooses; a name that its schema admits is always known here.

    Any: each policy's state is a type of its own, and which policy it is shows at run time only. The caller hands a
    policy its state back unseen.
    """
    match config.policy:
        case "ksmtuned":
            from virtksm.policy.ksmtuned import KsmtunedPolicy

            return KsmtunedPolicy(params=config.ksmtuned)
        case "observe":
            from virtksm.policy.observe import ObservePolicy

            return ObservePolicy(params=config.adaptive)
        case "adaptive":
            from virtksm.policy.adaptive import AdaptivePolicy

            return AdaptivePolicy(params=config.adaptive)
