"""When to tell that a reward fails, and when to stop for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from diffreward.reward import RewardError

LOG = logging.getLogger("diffreward.rewards")


@dataclass
class Outages:
    """What failures of a reward amount to: an error at first, later a sample without a score.

    A reward that has never given a score is taken for set up wrongly: a wrong address must not
    train for hours. One that has is taken for interrupted: the run goes on without its scores, and
    is told once when that begins and once when it ends.

    Args:
        name: of the reward, for messages.
    """

    name: str
    proven: bool = False
    lasting: bool = False

    def note(self, failures: Sequence[str], scored: bool) -> None:
        """Take in how a call went.

        Args:
            failures: what went wrong, a text each.
            scored: whether there was a score for any sample.

        Raises:
            RewardError: if there were failures, and there has been no score up to now.
        """
        self.proven |= scored
        if failures and not self.proven:
            raise RewardError(f"{self.name} has given no score yet: {failures[0]}")
        if failures and not self.lasting:
            LOG.warning(
                "%s: no score for some samples from now on, which are left out: %s",
                self.name,
                failures[0],
            )
        if self.lasting and not failures:
            LOG.warning("%s: all samples get scores again", self.name)
        self.lasting = bool(failures)
