"""Which images show the same head: copies under other names, and groups where nobody says who is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

BLOCK = 2048
FITTED_ON = 4000
COMPONENTS = 200
MIN_IMAGES = 80  # among fewer, a handful of components makes unrelated heads look alike
MAX_KINDS = 4  # of edges: between heads, and neighbours at one, two or more steps within a head
# Two modes of equal width are cleanly apart above 2: Ashman et al. 1994, doi:10.1086/117248.
ASHMAN_D = 2.0
SAME_HEAD = np.sqrt(0.5)  # neighbours in a head have more than half of their whitened variance in common
FLIPS = {"as it is": (), "mirrored left-right": (0,), "mirrored up-down": (-1,), "turned by half": (0, -1)}


@dataclass(frozen=True)
class Groups:
    """Images grouped by the head that they show.

    Attributes
    ----------
    label : (N,) int64
        Group of each image.
    threshold : float
        Similarity above which two images were joined; NaN where no threshold separates them.
    separation : float
        Ashman's D between similarities across heads and the next kind of similarity.
    """

    label: np.ndarray
    threshold: float
    separation: float

    @property
    def clear(self) -> bool:
        """Whether images of one head stand out from those of others."""
        return np.isfinite(self.threshold)


def near_duplicates(thumbnails: np.ndarray, limit: float) -> pd.DataFrame:
    """Pairs of images whose fine detail agrees, as they are or mirrored.

    The coarse shape that all heads share is filtered away first, and correlation takes no notice of brightness and
    contrast. All pairs are compared in blocks, so memory grows with the number of images, time with its square.

    Parameters
    ----------
    thumbnails : (N, P, E, E) or (N, P, E, E, E) float array
        See `fingerprint.thumbnail`; P planes.
    limit : float
        Least correlation.

    Returns
    -------
    DataFrame
        Columns first, second (row numbers, first < second), similarity, how (a key of `FLIPS`): the best match of each
        pair.
    """
    plain = _detail(thumbnails)
    found = []
    for how, axes in FLIPS.items():
        turned = plain if not axes else _detail(np.flip(thumbnails, [2 if axis == 0 else axis for axis in axes]))
        for start, product in _blocks(turned, plain):
            first, second = np.nonzero(product >= limit)
            keep = first + start < second
            first, second = first[keep], second[keep]
            found.append(pd.DataFrame({"first": first + start, "second": second, "how": how,
                                       "similarity": product[first, second]}))  # fmt: skip
    pairs = pd.concat(found, ignore_index=True).sort_values("similarity", ascending=False, kind="stable")
    return pairs.drop_duplicates(["first", "second"]).sort_values(["first", "second"]).reset_index(drop=True)


def _detail(thumbnails: np.ndarray) -> np.ndarray:
    """(N, D) float32 unit rows of high-passed thumbnails."""
    width = 1.5 if thumbnails.ndim == 4 else 1.0
    spatial = thumbnails.ndim - 2
    rows = np.empty((len(thumbnails), thumbnails[0].size), dtype=np.float32)
    for start in range(0, len(rows), BLOCK):
        part = thumbnails[start : start + BLOCK].astype(np.float32)
        part = part - ndimage.gaussian_filter(part, (0, 0, *[width] * spatial))
        rows[start : start + BLOCK] = part.reshape(len(part), -1)
    return _unit(rows - rows.mean(axis=1, keepdims=True))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _blocks(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(left), BLOCK):
        yield start, left[start : start + BLOCK] @ right.T


def recover_groups(thumbnails: np.ndarray, seed: int, copies: pd.DataFrame | None = None) -> Groups:
    """Group images by the head that they show, from the images alone.

    Neighbouring slices of one head resemble each other more than the same slice of two heads, once what all heads
    share is taken away: thumbnails are whitened against the cohort (principal components of equal variance). Single
    linkage follows the chain of neighbouring slices through a head. The least similar kind of edge in the minimum
    spanning tree joins different heads; a mixture of normal distributions of Fisher-transformed similarities, their
    number chosen by BIC, finds that kind and where it ends. Where Ashman's D does not set it apart, nothing is joined.

    Parameters
    ----------
    thumbnails : (N, P, E, E) or (N, P, E, E, E) float array
    seed : int
        Of the sample on which the components are fitted, and of the mixture.
    copies : DataFrame, optional
        Pairs from `near_duplicates`, joined in any case.

    Notes
    -----
    Slices far apart and follow-ups in another pose are not joined, so one person may make several groups. Measured
    with 200 heads of 32 neighbouring slices each: adjusted Rand index 1.00 with all slices, less where slices are
    missing at random (docs/audit.md).

    References
    ----------
    Gower & Ross 1969, doi:10.2307/2346439 (single linkage from the minimum spanning tree).
    """
    count = len(thumbnails)
    edges = np.empty((0, 2), dtype=int) if copies is None else copies[["first", "second"]].to_numpy()
    threshold, separation = np.nan, 0.0
    if count >= MIN_IMAGES:
        tree, similarity = spanning_tree(_whitened(thumbnails, seed))
        threshold, separation = _threshold(similarity, seed)
        edges = np.concatenate([edges, tree[similarity >= threshold]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(count, count))
    return Groups(connected_components(graph, directed=False)[1].astype(np.int64), threshold, separation)


def _whitened(thumbnails: np.ndarray, seed: int) -> np.ndarray:
    """(N, K) float32 unit rows in which what the cohort has in common no longer counts."""
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    rows = _unit(rows - rows.mean(axis=1, keepdims=True))
    sample = np.random.default_rng(seed).permutation(len(rows))[:FITTED_ON]
    components = min(COMPONENTS, len(sample) // 4, rows.shape[1])
    fitted = PCA(components, whiten=True, random_state=seed).fit(rows[np.sort(sample)])
    return _unit(fitted.transform(rows)).astype(np.float32)


def spanning_tree(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximum spanning tree of the cosine similarity, by Prim's algorithm with one row of it in memory at a time.

    Parameters
    ----------
    rows : (N, K) float32
        Unit rows.

    Returns
    -------
    edges : (N - 1, 2) int64
    similarity : (N - 1,) float64

    References
    ----------
    Prim 1957, doi:10.1002/j.1538-7305.1957.tb01515.x.
    """
    count = len(rows)
    nearest = np.full(count, -np.inf, dtype=np.float32)
    parent = np.zeros(count, dtype=np.int64)
    done = np.zeros(count, dtype=bool)
    edges, similarity = np.empty((count - 1, 2), dtype=np.int64), np.empty(count - 1)
    last = 0
    for step in range(count - 1):
        done[last] = True
        nearest[last] = -np.inf
        to_last = rows @ rows[last]
        closer = ~done & (to_last > nearest)
        nearest[closer], parent[closer] = to_last[closer], last
        last = int(nearest.argmax())
        edges[step], similarity[step] = (parent[last], last), nearest[last]
    return edges, similarity


def _threshold(similarity: np.ndarray, seed: int) -> tuple[float, float]:
    """Where edges between heads end (NaN where that cannot be seen), and Ashman's D from them to the next kind."""
    z = np.arctanh(np.clip(similarity, -0.999, 0.999))[:, None]
    fits = [GaussianMixture(kinds, n_init=5, random_state=seed).fit(z) for kinds in range(1, MAX_KINDS + 1)]
    mixture = min(fits, key=lambda fit: fit.bic(z))
    if mixture.n_components == 1:
        return np.nan, 0.0
    low, above = np.argsort(mixture.means_[:, 0])[:2]
    means, variances = mixture.means_[:, 0], mixture.covariances_[:, 0, 0]
    separation = float(np.sqrt(2) * (means[above] - means[low]) / np.sqrt(variances[low] + variances[above]))
    if separation <= ASHMAN_D or np.tanh(means.max()) < SAME_HEAD:
        return np.nan, separation
    between = np.linspace(means[low], means[above], 1001)[:, None]
    joined = mixture.predict_proba(between)[:, low] < 0.5
    return float(np.tanh(between[joined.argmax(), 0])), separation
