"""How many sounds there are, which patches belong to each, and what silence is."""

import numpy as np
import pytest

from avssl_ros.clustering import NEUTRAL_DECISION, cluster, dp_means, responsibilities

RNG = np.random.default_rng(0)
FRAME = np.linalg.qr(RNG.standard_normal((16, 16)))[0]


def patches(direction, count, gate=0.9, spread=0.05):
    noisy = FRAME[direction] + spread * RNG.standard_normal((count, 16))
    return gate * noisy / np.linalg.norm(noisy, axis=1, keepdims=True)


def heard(*parts):
    audio = np.concatenate(parts)
    return cluster(audio, np.ones(len(audio)), FRAME, NEUTRAL_DECISION)


def test_closed_gates_are_silence():
    assert heard(patches(0, 50, gate=0.1)) == []


def test_patches_that_are_not_heard_take_no_part():
    audio = patches(0, 50)
    assert cluster(audio, np.zeros(50), FRAME, NEUTRAL_DECISION) == []


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_number_of_sources_is_found(count):
    found = heard(*(patches(k, 20 + 10 * k) for k in range(count)), patches(9, 60, gate=0.05))
    assert len(found) == count
    assert [int(np.argmax(FRAME @ c.centroid)) for c in found] == list(range(count))[::-1]  # most sound first
    assert sum(c.share for c in found) == pytest.approx(1.0)


def test_stray_patches_are_no_source():
    assert len(heard(patches(0, 60), patches(1, 2))) == 1


def test_responsibilities_follow_direction_and_gate():
    belonging = responsibilities(np.stack([FRAME[2], 0.05 * FRAME[2], (FRAME[2] + FRAME[3]) / np.sqrt(2)]), FRAME)
    assert belonging[0].argmax() == 2 and belonging[0, 2] > 0.95
    assert belonging[1].sum() < 0.2  # a closed gate is nothing, whatever its direction
    assert belonging[2, 2] == pytest.approx(belonging[2, 3]) and belonging[2, [2, 3]].sum() > 0.9


def test_a_sound_knows_which_concepts_it_may_be():
    (sound,) = heard(patches(4, 40))
    assert sound.concepts.argmax() == 4 and sound.concepts[4] > 0.8 and sound.concepts.sum() <= 1.0


def test_dp_means_members_are_nearest_to_their_centroid():
    directions = np.concatenate([patches(k, 15, gate=1.0) for k in range(3)])
    centroids, member = dp_means(directions, np.ones(45), 0.5)
    assert np.array_equal(member, (directions @ centroids.T).argmax(axis=1)) and len(set(member)) == 3
