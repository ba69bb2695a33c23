"""Names that belong together, directly or through others."""

from collections.abc import Collection, Iterable

from scipy.cluster.hierarchy import DisjointSet


def first_of_linked(groups: Iterable[Collection[str]]) -> dict[str, str]:
    """The first of all names that each name is linked to.

    Parameters
    ----------
    groups : iterable of collection of str
        Names that belong together; groups that share a name are one.

    Returns
    -------
    dict of str to str
        By name, of all names in `groups`.
    """
    sets = DisjointSet()
    for first, *others in groups:
        sets.add(first)
        for other in others:
            sets.add(other)
            sets.merge(first, other)
    return {name: min(linked) for linked in sets.subsets() for name in linked}
