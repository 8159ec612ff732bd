"""How many sounds there are, which patches belong to each, and what silence is."""

import numpy as np
import pytest

from avssl_ros.clustering import NEUTRAL_DECISION, cluster, dp_means, refine

RNG = np.random.default_rng(0)
FRAME = np.linalg.qr(RNG.standard_normal((16, 16)))[0]


def patches(direction, count, gate=0.9, spread=0.05):
    noisy = FRAME[direction] + spread * RNG.standard_normal((count, 16))
    return gate * noisy / np.linalg.norm(noisy, axis=1, keepdims=True)


def heard(*parts):
    audio = np.concatenate(parts)
    return cluster(np.zeros((4, 16)), audio, np.ones(len(audio)), NEUTRAL_DECISION)


def test_closed_gates_are_silence():
    assert heard(patches(0, 50, gate=0.1)) == []


def test_patches_that_are_not_heard_take_no_part():
    audio = patches(0, 50)
    assert cluster(np.zeros((4, 16)), audio, np.zeros(50), NEUTRAL_DECISION) == []


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_number_of_sources_is_found(count):
    found = heard(*(patches(k, 20 + 10 * k) for k in range(count)), patches(9, 60, gate=0.05))
    assert len(found) == count
    assert [int(np.argmax(FRAME @ c.centroid)) for c in found] == list(range(count))[::-1]  # most sound first
    assert sum(c.share for c in found) == pytest.approx(1.0)


def test_stray_patches_are_no_source():
    assert len(heard(patches(0, 60), patches(1, 2))) == 1


def test_what_is_in_view_decides_between_two_concepts():
    unsure = (FRAME[2] + FRAME[3]) / np.sqrt(2)
    joint = refine(unsure, np.concatenate([patches(3, 12), patches(5, 12)]), NEUTRAL_DECISION)
    assert FRAME[3] @ joint > 0.85 > FRAME[2] @ joint


def test_nothing_alike_in_view_leaves_the_sound_as_it_is():
    assert np.array_equal(refine(FRAME[1], patches(4, 12), NEUTRAL_DECISION), FRAME[1])
    assert np.array_equal(refine(FRAME[1], patches(1, 12, gate=0.01), NEUTRAL_DECISION), FRAME[1])


def test_dp_means_members_are_nearest_to_their_centroid():
    directions = np.concatenate([patches(k, 15, gate=1.0) for k in range(3)])
    centroids, member = dp_means(directions, np.ones(45), 0.5)
    assert np.array_equal(member, (directions @ centroids.T).argmax(axis=1)) and len(set(member)) == 3
