"""Pixels of scans: digest and thumbnail of each, copies among them, and groups of images of one head."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import linkage_tree
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from adlib.imaging.nifti import load
from adlib.imaging.volume import to_canonical
from adlib.parallel.mapping import map_scans
from adlib.sources.image_files import PICTURES, SEPARATOR, read_plane
from adlib.sources.scanfile import VOLUME_SUFFIXES
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import TryAgain, is_passing

_EDGE_2D, _EDGE_3D = 32, 20
_REACH = 1.9  # half edge of the window, in root-mean-square radii of the foreground; a disc ends at 1.41
_FOREGROUND = 0.15  # of the way from the 1st to the 99th percentile of the values
PIXEL_FACTS = ["pixels_sha256", "nan_share", "constant", "thumbnail", "fault"]
_BLOCK = 2048
_FITTED_ON = 4000
_COMPONENTS = 200
_MIN_IMAGES = 80  # among fewer, a handful of components makes unrelated heads look alike
_MAX_KINDS = 4  # of edges: between heads, and neighbours at one, two or more steps within a head
# Two modes of equal width are cleanly apart above 2: Ashman et al. 1994, doi:10.1086/117248.
_ASHMAN_D = 2.0
_SAME_HEAD = np.sqrt(0.5)  # neighbours in a head have more than half of their whitened variance in common
_FLIPS = {"as it is": (), "mirrored left-right": (0,), "mirrored up-down": (-1,), "turned by half": (0, -1)}


def pixel_facts(listed: pd.DataFrame, *, pool: Pool = EVERY_CORE) -> pd.DataFrame:
    """Read every scan once: its digest, faults and thumbnail.

    Parameters
    ----------
    listed : DataFrame
        Schema `records.LISTING`; rows that the source excludes are not read.
    pool : Pool
        Processes that read.

    Returns
    -------
    DataFrame
        Indexed as `listed`. ``pixels_sha256``: digest of the values, whatever the compression and the header;
        ``nan_share``: share of values that are not finite; ``constant``: whether all are equal; ``thumbnail``: see
        `thumbnail`; ``fault``: the error in reading the scan. All empty where it was not read.

    Raises
    ------
    TryAgain
        If the system cannot read a file.
    """
    wanted = listed["path"].notna() & (listed["excluded"].isna() if "excluded" in listed else True)
    paths = list(listed.loc[wanted, "path"])
    facts = map_scans(_facts, paths, pool=pool, label="comparing pixels", lost=_lost, isolate=True)
    read = pd.DataFrame(facts, index=listed.index[wanted], columns=PIXEL_FACTS, dtype=object)
    return read.reindex(listed.index).astype({"nan_share": float})


def _lost(_path: str, reason: str) -> dict[str, Any]:
    return {"fault": f"reading failed: {reason}"}


def _facts(path: str) -> dict[str, Any]:
    try:
        arrays = _read(path.split(SEPARATOR))
        values = np.concatenate([array.ravel() for array in arrays])
        finite = np.isfinite(values)
        if not finite.all():
            arrays = [np.where(np.isfinite(array), array, np.float32(0)) for array in arrays]
        constant = not finite.any() or bool(np.ptp(values[finite]) == 0)
        return {
            "pixels_sha256": _digest(arrays),
            "nan_share": float(1 - finite.mean()),
            "constant": constant,
            "thumbnail": None if constant else np.stack([thumbnail(array) for array in arrays]).astype(np.float16),
        }
    except Exception as error:  # decoders meet arbitrary bytes here and raise whatever they raise
        if isinstance(error, OSError) and is_passing(error):
            raise TryAgain(
                f"{path} cannot be read ({error}); check the disk and run again, or exclude the scan: a scan "
                "that is not compared with the others could be a copy of one"
            ) from None
        return {"fault": f"{type(error).__name__}: {error}"[:200]}


def _read(files: list[str]) -> list[np.ndarray]:
    """The planes of a scan, or one volume in a list; a stack of fewer planes than a thumbnail has is not."""
    if len(files) == 1 and not files[0].lower().endswith(PICTURES):
        return [_volume(Path(files[0]))]
    planes = [read_plane(name) for name in files]
    return planes if len(planes) < _EDGE_3D else [np.stack(planes, axis=-1)]


def _volume(path: Path) -> np.ndarray:
    """(X, Y, Z) float32 in the nearest right-anterior-superior order, or (X, Y) where the file holds one slice."""
    if not path.name.lower().endswith(VOLUME_SUFFIXES):
        raise ValueError("no image file")
    image, _ = load(path)
    data = np.asarray(image.dataobj)
    data = (np.abs(data) if np.iscomplexobj(data) else data).astype(np.float32, copy=False)
    data = data[..., 0] if data.ndim == 4 else data
    flat = np.squeeze(data)
    if flat.ndim == 2:
        return flat
    try:
        return to_canonical(data, image.affine)[0]
    except (ValueError, np.linalg.LinAlgError):
        return data


def _digest(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return digest.hexdigest()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Downsample an image in a window around its foreground.

    The window is centred on the foreground's centre of mass and scaled by its spread, so that shifting, padding and
    resizing an image change little.

    Parameters
    ----------
    image : (X, Y) or (X, Y, Z) float32
        Finite and not constant.

    Returns
    -------
    (32, 32) or (20, 20, 20) float32
    """
    low, high = np.percentile(image, (1, 99))
    low, high = (low, high) if high > low else (image.min(), image.max())
    mask = image > low + _FOREGROUND * (high - low)
    places = [mask.sum(axis=tuple(set(range(image.ndim)) - {axis})) for axis in range(image.ndim)]
    centre = np.array([np.average(np.arange(len(counts)), weights=counts) for counts in places])
    squares = [(np.arange(len(counts)) - middle) ** 2 for counts, middle in zip(places, centre, strict=True)]
    spread = np.mean([np.average(square, weights=counts) for square, counts in zip(squares, places, strict=True)])
    edge = _EDGE_2D if image.ndim == 2 else _EDGE_3D
    step = max(2 * _REACH * np.sqrt(2 * spread) / edge, 1e-3)
    smooth = ndimage.uniform_filter(image, 2 * round((step - 1) / 2) + 1 if step > 1 else 1)
    sample = partial(ndimage.affine_transform, order=1, cval=low, output_shape=(edge,) * image.ndim)
    return sample(smooth, np.full(image.ndim, step), centre - step * (edge - 1) / 2).astype(np.float32)


def near_duplicates(thumbnails: np.ndarray, limit: float) -> pd.DataFrame:
    """Pairs of images whose fine detail agrees, as they are or mirrored.

    The coarse shape that all heads share is filtered away first; correlation ignores brightness and contrast. All
    pairs are compared in blocks, so memory grows with the number of images (docs/audit.md), time with its square.

    Parameters
    ----------
    thumbnails : (N, P, E, E) or (N, P, E, E, E) float array
        See `thumbnail`; P planes.
    limit : float
        Least correlation.

    Returns
    -------
    DataFrame
        Columns first, second (row numbers, first < second), similarity, how (a key of `_FLIPS`): the best match of each
        pair.
    """
    plain = _detail(thumbnails)
    found = []
    for start in range(0, len(plain), _BLOCK):
        part = thumbnails[start : start + _BLOCK]
        for how, axes in _FLIPS.items():
            turned = _detail(np.flip(part, tuple(2 if axis == 0 else axis for axis in axes)))
            for other in range(start, len(plain), _BLOCK):
                product = turned @ plain[other : other + _BLOCK].T
                rows = np.argwhere(product >= limit)
                first, second = rows[rows[:, 0] + start < rows[:, 1] + other].T
                pairs = {"first": first + start, "second": second + other, "similarity": product[first, second]}
                found.append(pd.DataFrame(pairs).assign(how=how))
    pairs = pd.concat(found, ignore_index=True).sort_values("similarity", ascending=False, kind="stable")
    return pairs.drop_duplicates(["first", "second"]).sort_values(["first", "second"]).reset_index(drop=True)


def _detail(thumbnails: np.ndarray) -> np.ndarray:
    """(N, D) float32 unit rows of high-passed thumbnails."""
    width = 1.5 if thumbnails.ndim == 4 else 1.0
    blur = (0, 0, *[width] * (thumbnails.ndim - 2))
    return _by_blocks(thumbnails, lambda part: _centred(part - ndimage.gaussian_filter(part, blur)))


def _by_blocks(thumbnails: np.ndarray, rows: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(N, ...) float32 rows of float32 blocks of thumbnails."""
    blocks = (thumbnails[start : start + _BLOCK].astype(np.float32) for start in range(0, len(thumbnails), _BLOCK))
    return np.concatenate([rows(block).astype(np.float32, copy=False) for block in blocks])


def _centred(thumbnails: np.ndarray) -> np.ndarray:
    """(N, D) unit rows without their mean."""
    rows = thumbnails.reshape(len(thumbnails), -1)
    return _unit(rows - rows.mean(axis=1, keepdims=True))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def recover_groups(thumbnails: np.ndarray, limit: float, seed: int) -> tuple[np.ndarray, bool]:
    """Group images by the head that they show, from the images alone.

    Neighbouring slices of one head resemble each other more than the same slice of two heads, once what all heads
    share is removed: thumbnails are whitened against the cohort (principal components of equal variance). Single
    linkage follows the chain of neighbouring slices through a head. The least similar kind of edge in the minimum
    spanning tree joins different heads; a mixture of normal distributions of Fisher-transformed similarities, their
    number chosen by BIC, finds that kind and where it ends. Where Ashman's D does not set it apart, nothing is joined.

    Parameters
    ----------
    thumbnails : (N, P, E, E) or (N, P, E, E, E) float array
    limit : float
        Correlation of copies, which are joined in any case, see `near_duplicates`.
    seed : int
        Of the sample on which the components are fitted, and of the mixture.

    Returns
    -------
    labels : (N,) int array
        Group of each image.
    separate : bool
        Whether a threshold separates images of one head from those of others.

    Notes
    -----
    Slices far apart and follow-ups in another pose are not joined, so one person may make several groups. Measured
    with 200 heads of 32 neighbouring slices each: adjusted Rand index 1.00 with all slices, less where slices are
    missing at random (docs/audit.md).
    """
    count = len(thumbnails)
    edges = near_duplicates(thumbnails, limit)[["first", "second"]].to_numpy()
    threshold = np.nan
    if count >= _MIN_IMAGES:
        children, *_, distances = linkage_tree(_whitened(thumbnails, seed), linkage="single", return_distance=True)
        similarity = 1 - distances**2 / 2
        threshold = _threshold(similarity, seed)
        joined = np.flatnonzero(similarity >= threshold)  # the n-th step joins its two children to the node count + n
        edges = np.concatenate([edges, *(np.stack([count + joined, side[joined]], axis=1) for side in children.T)])
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(2 * count, 2 * count))
    return connected_components(graph, directed=False)[1][:count], bool(np.isfinite(threshold))


def _whitened(thumbnails: np.ndarray, seed: int) -> np.ndarray:
    """(N, K) float32 unit rows, whitened against what the cohort has in common."""
    sample = np.sort(np.random.default_rng(seed).permutation(len(thumbnails))[:_FITTED_ON])
    components = min(_COMPONENTS, len(sample) // 4, thumbnails[0].size)
    fitted = PCA(components, whiten=True, random_state=seed).fit(_by_blocks(thumbnails[sample], _centred))
    return _by_blocks(thumbnails, lambda part: _unit(fitted.transform(_centred(part))))


def _threshold(similarity: np.ndarray, seed: int) -> float:
    """Similarity where edges between heads end; NaN where they are not separable from the next kind of edge."""
    z = np.arctanh(np.clip(similarity, -0.999, 0.999))[:, None]
    fits = [GaussianMixture(kinds, n_init=5, random_state=seed).fit(z) for kinds in range(1, _MAX_KINDS + 1)]
    mixture = min(fits, key=lambda fit: fit.bic(z))
    if mixture.n_components == 1:
        return np.nan
    low, above = np.argsort(mixture.means_[:, 0])[:2]
    means, variances = mixture.means_[:, 0], mixture.covariances_[:, 0, 0]
    separation = float(np.sqrt(2) * (means[above] - means[low]) / np.sqrt(variances[low] + variances[above]))
    if separation <= _ASHMAN_D or np.tanh(means.max()) < _SAME_HEAD:
        return np.nan
    between = np.linspace(means[low], means[above], 1001)[:, None]
    joined = mixture.predict_proba(between)[:, low] < 0.5
    return float(np.tanh(between[joined.argmax(), 0]))
