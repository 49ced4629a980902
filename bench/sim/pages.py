"""What ksmd remembers of a page (struct ksm_rmap_item), and smart_scan's rule which pages it skips.

Contents have no bytes here: a page's content is its place and a version, which every write of something new raises.
"""

from __future__ import annotations

from dataclasses import dataclass

OLDEST = 255
"""rmap_age_t is a u8; the age stays there."""

YOUNG = 3
"""Pages are never skipped at their first three visits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageState:
    """One page, or many alike. Versions are those of the page's content; `None` is no version at all.

    `known`: ksmd has an rmap_item for it. `checksum_of`: the version whose checksum ksmd holds. `merged_as`: the
    version under which it stands in the stable tree, which a write undoes only at ksmd's next visit.
    `inserted_in`: the full scan in which it was put into the unstable tree.
    """

    version: int = 0
    known: bool = False
    checksum_of: int | None = None
    age: int = 0
    remaining_skips: int = 0
    merged_as: int | None = None
    inserted_in: int | None = None

    @property
    def is_merged(self) -> bool:
        """Whether it is mapped to a merged page now."""
        return self.merged_as is not None and self.merged_as == self.version

    def out_of_trees(self) -> PageState:
        """Return it as remove_rmap_item_from_tree leaves it."""
        return PageState(  # written out: dataclasses.replace takes four times as long, and this is the inner loop
            version=self.version,
            known=True,
            checksum_of=self.checksum_of,
            age=self.age,
            remaining_skips=self.remaining_skips,
        )

    def aged(self, remaining_skips: int) -> PageState:
        """Return it one scan older."""
        return PageState(
            version=self.version,
            known=self.known,
            checksum_of=self.checksum_of,
            age=min(self.age + 1, OLDEST),
            remaining_skips=remaining_skips,
            merged_as=self.merged_as,
            inserted_in=self.inserted_in,
        )


UNKNOWN = PageState()


def skip_age(age: int) -> int:
    """Tell how many scans a page of this age is skipped once its skips are used up (skip_age in mm/ksm.c)."""
    if age <= YOUNG:
        return 1
    if age <= 5:
        return 2
    return 4 if age <= 8 else 8


def grow_older(state: PageState) -> tuple[PageState, bool]:
    """Return an unmerged page as it is after smart_scan has looked at it, and whether it is skipped this time."""
    if state.age < YOUNG:
        return state.aged(state.remaining_skips), False
    if state.remaining_skips == 0:
        return state.aged(skip_age(state.age)), False
    return state.aged(state.remaining_skips - 1), True
