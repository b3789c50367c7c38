"""Links between groups of stocks (sectors, clusters), as the edges of a stock graph inherit them.

Who is linked to whom comes from ``atft_model.structure``; here is the form in which it reaches the
graph and the model. No torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

LINK_ATTRIBUTES = ("link_weight", "link_lag", "link_confidence")
"""Of the link that an edge inherits: signed size in standard deviations, days, share of resamples.
All are 0 on an edge that inherits none."""


@dataclass(frozen=True)
class GroupLinks:
    """Which group of stocks drives which.

    Attributes:
        group_of: Position of each code's group; a code that is absent is in none.
        between: Position in ``attributes`` of the link from a group (row) to another (column); 0
            where there is none. A group has no link to itself: a stock's own group is its past.
        attributes: ``LINK_ATTRIBUTES`` of every link; row 0, of no link, is 0.
    """

    group_of: Mapping[str, int]
    between: Int[np.ndarray, "groups groups"]
    attributes: Float[np.ndarray, "links attributes"]

    def groups(self, codes: Sequence[str]) -> Int[np.ndarray, " stocks"]:
        """Each code's group; the last position (one more than there are groups) is none."""
        return np.array([self.group_of.get(code, len(self.between)) for code in codes])

    @property
    def padded(self) -> Int[np.ndarray, "groups_or_none groups_or_none"]:
        """``between`` with a last row and column for stocks of no group."""
        return np.pad(self.between, (0, 1))

    @property
    def signs(self) -> Float[np.ndarray, "groups_or_none groups_or_none"]:
        """The sign of each link's weight, 0 where there is none."""
        return np.sign(self.attributes[:, 0])[self.padded]
