"""How a method's features lie: what masks select, which sounds are alike, and whether the two go together.

Zhou et al., Audio-visual segmentation, ECCV 2022, figure 7, draws the visual features under the masks by t-SNE, in the
colours of clusters of the sounds. A picture by t-SNE depends on its seed and its perplexity; the figures here are
therefore taken in the space of the features themselves, and between clips: the frames of one clip are alike anyway.

scikit-learn, slow to import, is loaded on first use, and runs on one thread: the order of a sum over threads is not
fixed, and t-SNE makes a different picture of a different last bit.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from avs_jax.metrics.bootstrap import LEVEL, resamples
from avs_jax.models.layers import adaptive_avg_pool

NEIGHBOURS = 5


def one_thread(function):
    """The function, with scikit-learn's and BLAS's threads held at one."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        import sklearn.utils.validation  # noqa: F401  loads the libraries whose threads are held
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return function(*args, **kwargs)

    return wrapped


def masked_mean(features, mask):
    """The mean of maps over masks, which are averaged down to the maps' size.

    Args:
      features: (B, T, h, w, C).
      mask: (B, T, H, W) bool.
    Returns:
      (B, T, C) float32, and (B, T) float32, the masks' share of the frame; 0 and 0 where a mask is empty.
    """
    h, w = features.shape[2:4]
    flat = mask.reshape(-1, *mask.shape[2:], 1).astype(jnp.float32)
    weights = adaptive_avg_pool(flat, (h, w)).reshape(*mask.shape[:2], h, w)
    total = jnp.einsum("bthw,bthwc->btc", weights, features.astype(jnp.float32), precision="highest")
    area = weights.sum((2, 3))
    return total / jnp.maximum(area, 1e-6)[..., None], area / (h * w)


def distinct(features: np.ndarray) -> int:
    """How many of (n, C) features differ from each other."""
    return len(np.unique(features, axis=0))


@one_thread
def cluster(sounds: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """k-means of (n, D) features: (n,) cluster 0, 1, ..., the largest first; fewer where fewer features differ."""
    from sklearn.cluster import KMeans

    clusters = min(clusters, distinct(sounds))
    found = KMeans(clusters, n_init=10, random_state=seed).fit(np.asarray(sounds, np.float64)).labels_
    order = np.argsort(-np.bincount(found, minlength=clusters), kind="stable")
    return np.argsort(order)[found]


@one_thread
def project(features: np.ndarray, *, perplexity: float = 30.0, seed: int = 0) -> tuple[np.ndarray, float]:
    """t-SNE (van der Maaten and Hinton, 2008) of (n, C) features, started from their first two principal components.

    Returns:
      (n, 2) float64, and the perplexity: a third of the number of neighbours where what was asked for is more.
    """
    from sklearn.manifold import TSNE

    perplexity = float(min(perplexity, (len(features) - 1) / 3))
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return tsne.fit_transform(np.asarray(features, np.float64)), perplexity


class Agreement(NamedTuple):
    """share: of the nearest neighbours that are of a point's own cluster. interval: its 95 % interval over resampled
    clips. chance: the share among all points of other clips."""

    share: float
    interval: tuple[float, float]
    chance: float


@one_thread
def agreement(features: np.ndarray, clusters: np.ndarray, clips: np.ndarray, resamplings: int = 1000) -> Agreement:
    """Whether what looks alike sounds alike: clusters of the nearest neighbours, other clips' points only.

    Args:
      features: (n, C), Euclidean.
      clusters: (n,) integers.
      clips: (n,) integers: the clip a point is of.
      resamplings: of the clips, for the interval.
    Returns:
      NaN where all points are of one clip.
    """
    from sklearn.neighbors import NearestNeighbors

    names, clips = np.unique(clips, return_inverse=True)
    own = np.bincount(clips)
    if len(names) < 2:
        return Agreement(np.nan, (np.nan, np.nan), np.nan)
    reach = min(len(features), NEIGHBOURS + int(own.max()))  # the own clip's points may all come first
    order = NearestNeighbors(n_neighbors=reach).fit(features).kneighbors(return_distance=False, X=features)
    other = clips[order] != clips[:, None]
    counted = other & (np.cumsum(other, 1) <= NEIGHBOURS)
    alike = (counted & (clusters[order] == clusters[:, None])).sum(1) / counted.sum(1)
    pairs = np.zeros((len(names), clusters.max() + 1))
    np.add.at(pairs, (clips, clusters), 1)
    chance = (pairs.sum(0)[clusters] - pairs[clips, clusters]) / (len(clips) - own[clips])
    drawn = resamples(len(names), resamplings, seed=0)
    means = np.bincount(clips, alike)[drawn].sum(1) / own[drawn].sum(1)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Agreement(float(alike.mean()), (float(low), float(high)), float(chance.mean()))


@one_thread
def silhouette(features: np.ndarray, clusters: np.ndarray) -> float:
    """Rousseeuw's mean silhouette of the clusters among the features, in [-1, 1]; NaN for fewer than two clusters, or
    as many as points."""
    from sklearn.metrics import silhouette_score

    if not 1 < len(np.unique(clusters)) < len(clusters):
        return float("nan")
    return float(silhouette_score(features, clusters))


def ranking(values: np.ndarray, truth: np.ndarray) -> float:
    """The area under the ROC curve: how often a pixel of the truth has a higher value than one that is not, ties half.

    Args:
      values: any shape, float. truth: the same shape, bool.
    Returns:
      In [0, 1]; NaN where all pixels are one or the other.
    """
    from scipy.stats import rankdata

    truth = truth.reshape(-1)
    inside, outside = int(truth.sum()), int((~truth).sum())
    if not inside or not outside:
        return float("nan")
    ranks = rankdata(values.reshape(-1))
    return float((ranks[truth].sum() - inside * (inside + 1) / 2) / (inside * outside))
