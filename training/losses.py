"""Deep clustering over visual and time-frequency patches of one scene, and the alignment with concept prototypes.

Deep clustering (Hershey et al. 2016): embeddings V (N, D) and memberships Y (N, C) of N patches with weights w; the
loss compares the affinity matrices, |V V' - Y Y'|^2, which costs O(N D^2) when written through V'V. Rows of background
and silence have Y = 0, so they are pulled to zero and the norm of an embedding becomes a gate.

Two later forms (Wang, Le Roux, Hershey 2018) ask only that the embeddings of a cluster are alike beside those of
others, whatever their size and direction: `whitened_k_means` and `deep_lda`. Model card: how they compare.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from avssl_ros.clustering import NOTHING, SHARPNESS

BACKGROUND, IGNORE = -1, -2


def deep_clustering(v: torch.Tensor, owner: torch.Tensor, weight: torch.Tensor, clusters: int) -> torch.Tensor:
    """Weighted deep clustering loss |V V' - Y Y'|^2, the mean over scenes.

    Args:
        v: (S, N, D) embeddings of the N visual and audio patches of S scenes.
        owner: (S, N) cluster of each patch, BACKGROUND for rows with Y = 0; IGNORE rows need weight 0.
        weight: (S, N) non-negative.
        clusters: C.
    """
    v, y = _weighted_rows(v, owner, weight, clusters)
    def square(a, b):
        return torch.einsum("sni,snj->sij", a, b).square().sum(dim=(1, 2))
    return (square(v, v) - 2 * square(v, y) + square(y, y)).mean()


def whitened_k_means(v: torch.Tensor, owner: torch.Tensor, weight: torch.Tensor, clusters: int) -> torch.Tensor:
    """Clusters of a scene less tr((V'V)^-1 V'Y (Y'Y)^-1 Y'V): 0 where whitened embeddings are their clusters' means.

    Arguments as of `deep_clustering`. V'V gets a ridge: a scene has fewer clusters than the embedding dimensions.
    """
    v, y = _weighted_rows(v, owner, weight, clusters)
    scatter = v.transpose(1, 2) @ v + RIDGE * torch.eye(v.shape[2], device=v.device)
    between = _between_clusters(v, y)
    explained = torch.linalg.solve(scatter, between).diagonal(dim1=1, dim2=2).sum(dim=1)
    return ((y.sum(dim=1) > 0).sum(dim=1) - explained).mean()


def deep_lda(v: torch.Tensor, owner: torch.Tensor, weight: torch.Tensor, clusters: int) -> torch.Tensor:
    """Scatter within clusters over scatter of their means; background is a cluster whose mean is the origin.

    Arguments as of `deep_clustering`.
    """
    v, y = _weighted_rows(v, owner, weight, clusters)
    of_means = _between_clusters(v, y).diagonal(dim1=1, dim2=2).sum(dim=1)
    within = v.square().sum(dim=(1, 2)) - of_means
    between = of_means - (v.transpose(1, 2) @ y).sum(dim=2).square().sum(dim=1)  # about the mean of all
    return (within / (between + RIDGE)).mean()


RIDGE = 1e-3  # of scatter matrices of rows whose weights sum to 1
CLUSTERING = {"plain": deep_clustering, "whitened": whitened_k_means, "lda": deep_lda}


def _weighted_rows(v, owner, weight, clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """V (S, N, D) and Y (S, N, C), their rows times the root of their share of a scene's weight, in float32."""
    root = (weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-6)).sqrt()[..., None]
    y = F.one_hot(owner.clamp_min(0), clusters).to(v.dtype) * (owner >= 0)[..., None]
    return (v * root).float(), (y * root).float()


def _between_clusters(v: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """V'Y (Y'Y)^-1 Y'V (S, D, D): the scatter of the means of clusters."""
    sums = v.transpose(1, 2) @ y
    return (sums / y.square().sum(dim=1).clamp_min(1e-6)[:, None]) @ sums.transpose(1, 2)


def concept_logits(v: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """Logits (..., C + 1) of embeddings (..., D) for C prototypes (C, D); the last stands for "nothing that sounds"."""
    logits = SHARPNESS * v @ frame.T
    return torch.cat([logits, logits.new_full((*logits.shape[:-1], 1), NOTHING * SHARPNESS)], dim=-1)


def object_weights(
    v: torch.Tensor, owner: torch.Tensor, owner_concept: torch.Tensor, frame: torch.Tensor
) -> torch.Tensor:
    """Weights (G, N) with which patches stand for the object that owns them; each object's sum is 1.

    A photograph shows more than its label, so its patches count by the model's own evidence for the label
    (multiple-instance learning), mixed with an even share so that none is lost for good.

    Args:
        v: (G, N, D). owner: (G, N) object index within its group.
        owner_concept: (G, K) concept of each object or IGNORE.
    """
    member = F.one_hot(owner.clamp_min(0), owner_concept.shape[1]).bool() & (owner >= 0)[..., None]
    target = frame[owner_concept.clamp_min(0)]
    evidence = SHARPNESS * torch.einsum("gnd,gkd->gnk", v.detach(), target)
    attention = torch.softmax(evidence.masked_fill(~member, -1e4), dim=1) * member
    even = member / member.sum(dim=1, keepdim=True).clamp_min(1)
    known = (owner_concept >= 0)[:, None]
    return ((0.75 * attention + 0.25 * even) * known).sum(dim=2)


class Mean(NamedTuple):
    """A sum over rows and their number, apart: ranks have unequal numbers, and their means must not be averaged."""

    total: torch.Tensor
    count: torch.Tensor

    @property
    def value(self) -> torch.Tensor:
        return self.total / self.count.clamp_min(1)


def alignment(v, owner, owner_concept, frame) -> tuple[Mean, Mean]:
    """Cross entropy of each object's pooled patches against its concept, and of background patches against "nothing".

    Patches are pooled by log-mean-exp over the object's cells, so that one strong cell is enough.
    """
    logits = concept_logits(v, frame)
    member = F.one_hot(owner.clamp_min(0), owner_concept.shape[1]).bool() & (owner >= 0)[..., None]
    spread = logits[:, :, None].expand(-1, -1, member.shape[2], -1).masked_fill(~member[..., None], -1e4)
    pooled = torch.logsumexp(spread, dim=1) - member.sum(dim=1).clamp_min(1).log()[..., None]
    known = (owner_concept >= 0) & member.any(dim=1)
    background = owner == BACKGROUND
    nothing = torch.full_like(owner[background], frame.shape[0])
    return (Mean(F.cross_entropy(pooled[known], owner_concept[known], reduction="sum"), known.sum()),
            Mean(F.cross_entropy(logits[background], nothing, reduction="sum"), background.sum()))  # fmt: skip


def pooled_prototypes(v, owner, owner_concept, weight, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean direction (classes, D) of the patches of each class in this batch, and which classes have any (classes,).

    The prototypes of clips without a label: the picture is aligned with those of the sounds, the sound with those of
    the pictures. Arguments as of `object_weights`, and its weights; classes outside 0..classes are left out.
    """
    concept = torch.gather(owner_concept, 1, owner.clamp_min(0).clamp_max(owner_concept.shape[1] - 1))
    member = (owner >= 0) & (concept >= 0) & (concept < classes)
    share = F.one_hot(concept.clamp(0, max(classes - 1, 0)), max(classes, 1)) * (member * weight)[..., None]
    pooled = torch.einsum("gnc,gnd->cd", share.to(v.dtype), v)[:classes]
    return F.normalize(pooled, dim=1, eps=1e-6), share.sum(dim=(0, 1))[:classes] > 0


def open_gates(v: torch.Tensor, owner: torch.Tensor) -> Mean:
    """Squared norms of background patches. Pairs of background rows alone pull a norm down only to the fourth power."""
    background = (owner == BACKGROUND).to(v.dtype)
    return Mean((v.square().sum(dim=-1) * background).sum(), background.sum())


# ------------------------------------------------------- objectives of others, for benchmarks/objectives.py to compare

EZ_VSL_TEMPERATURE = 0.03  # as in the paper
DENSE_AV_TEMPERATURE = 0.05  # the paper learns it


def ez_vsl_similarity(audio: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """(A, S): cosine of the mean of each sound's patches (A, Q, D) to the best patch of each picture (S, P, D).

    Multiple-instance contrastive learning of EZ-VSL (Mo and Morgado 2022, equation 3).
    """
    mean, patches = F.normalize(audio.mean(dim=1), dim=1), F.normalize(visual, dim=2)
    return torch.einsum("ad,spd->asp", mean, patches).amax(dim=2)


def dense_av_products(audio: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """(A, S, Q, P): products of each sound's patches (A, Q, D) with those of each picture (S, P, D)."""
    return torch.einsum("aqd,spd->asqp", audio, visual)


def dense_av_similarity(products: torch.Tensor) -> torch.Tensor:
    """(A, S): mean over a sound's patches of the largest product with a patch of a picture.

    Aggregation of DenseAV (Hamilton et al. 2024, section 3.2) with one head.
    """
    return products.amax(dim=3).mean(dim=2)


def dense_av_pressure(products: torch.Tensor) -> Mean:
    """Squares of negative products, which DenseAV pushes to zero."""
    return Mean(products.clamp_max(0).square().sum(), torch.tensor(float(products.numel()), device=products.device))


def contrast(similarity: torch.Tensor, own: torch.Tensor) -> Mean:
    """Symmetric InfoNCE: sound a belongs to picture own[a], and of the sounds not of this picture to none of them.

    Args:
        similarity: (A, S) of A sounds to S pictures, over a temperature. own: (A,) indices of pictures.
    """
    count = len(own)
    to_picture = F.cross_entropy(similarity, own, reduction="sum")
    of_picture = similarity.T[own]  # row a: all sounds, as the picture of sound a sees them
    same = (own[:, None] == own[None]) & ~torch.eye(count, dtype=torch.bool, device=own.device)
    to_sound = F.cross_entropy(of_picture.masked_fill(same, -1e4), torch.arange(count, device=own.device),
                               reduction="sum")
    return Mean((to_picture + to_sound) / 2, torch.tensor(float(count), device=own.device))
