"""The deep clustering loss is the one of the papers, and what it pulls where."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training import losses  # noqa: E402
from training.networks import AudioEncoder, PatchHead, prototypes  # noqa: E402
from training.train import TrainConfig, contrastive_terms, moving_average  # noqa: E402

pytestmark = pytest.mark.train


def direct(v, owner, weight):
    """|V V' - Y Y'|^2 with weighted rows, written out with N x N matrices."""
    root = (weight / weight.sum()).sqrt()[:, None]
    y = torch.nn.functional.one_hot(owner.clamp_min(0), 5).float() * (owner >= 0)[:, None]
    v, y = v * root, y * root
    return ((v @ v.T - y @ y.T) ** 2).sum()


def test_the_loss_equals_the_affinity_matrices():
    generator = torch.Generator().manual_seed(0)
    v, weight = torch.randn(2, 40, 8, generator=generator), torch.rand(2, 40, generator=generator)
    owner = torch.randint(-1, 5, (2, 40), generator=generator)
    expected = torch.stack([direct(*row) for row in zip(v, owner, weight)]).mean()
    assert torch.isclose(losses.deep_clustering(v, owner, weight, 5), expected, rtol=1e-4)


def test_orthonormal_clusters_and_zero_background_cost_nothing():
    frame = prototypes(5, 8)
    owner = torch.tensor([[0, 1, 2, 3, 4, losses.BACKGROUND, 2]])
    v = torch.cat([frame, torch.zeros(1, 8), frame[2:3]])[None]
    assert losses.deep_clustering(v, owner, torch.ones(1, 7), 5) < 1e-9
    open_gate = v.clone()
    open_gate[0, 5] = frame[0]
    assert losses.deep_clustering(open_gate, owner, torch.ones(1, 7), 5) > 0.01


@pytest.mark.parametrize("form", [losses.whitened_k_means, losses.deep_lda])
def test_later_forms_ask_for_clusters_and_closed_gates_whatever_the_scale(form):
    frame = prototypes(5, 8)
    owner, weight = torch.tensor([[0, 1, 2, 2, losses.BACKGROUND, losses.IGNORE]]), torch.tensor([[1.0, 1, 1, 1, 1, 0]])
    v = 0.6 * torch.cat([frame[[0, 1, 2, 2]], torch.zeros(1, 8), frame[4:]])[None]
    good = form(v, owner, weight, 5)
    assert torch.isclose(good, form(v + 0.4 * v, owner, weight, 5), atol=0.02) and abs(good) < 0.05
    mixed, open_gate = v.clone(), v.clone()
    mixed[0, 3], open_gate[0, 4] = frame[0], frame[0]
    assert form(mixed, owner, weight, 5) > good + 0.1 and form(open_gate, owner, weight, 5) > good + 0.1


def test_whitened_k_means_is_the_papers():
    generator = torch.Generator().manual_seed(3)
    v, owner = torch.randn(1, 60, 4, generator=generator), torch.arange(60)[None] % 3
    y = torch.nn.functional.one_hot(owner[0]).float()
    inverse = torch.linalg.inv(v[0].T @ v[0])
    expected = 3 - torch.trace(inverse @ v[0].T @ y @ torch.linalg.inv(y.T @ y) @ y.T @ v[0])
    assert torch.isclose(losses.whitened_k_means(v, owner, torch.ones(1, 60), 3), expected, rtol=0.02)


def test_rows_without_weight_do_not_matter():
    v = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    owner, weight = torch.tensor([[0, 0, 1, 1, losses.IGNORE, losses.IGNORE]]), torch.tensor([[1.0, 1, 1, 1, 0, 0]])
    other = v.clone()
    other[0, 4:] *= 7
    assert torch.isclose(losses.deep_clustering(v, owner, weight, 2), losses.deep_clustering(other, owner, weight, 2))


def test_an_objects_patches_share_one_weight_and_the_telling_ones_get_more():
    frame = prototypes(3, 8)
    owner, concept = torch.tensor([[0, 0, 0, losses.BACKGROUND]]), torch.tensor([[2, losses.IGNORE]])
    v = torch.stack([frame[2], 0 * frame[0], frame[0], frame[2]])[None]
    weight = losses.object_weights(v, owner, concept, frame)[0]
    assert weight.sum() == pytest.approx(1.0) and weight[0] > 0.7 and weight[3] == 0


def test_alignment_falls_when_one_patch_shows_the_concept_and_background_shows_nothing():
    frame = prototypes(3, 8)
    owner, concept = torch.tensor([[0, 0, losses.BACKGROUND]]), torch.tensor([[1]])
    good = torch.stack([frame[1], 0 * frame[0], 0 * frame[0]])[None]
    bad = torch.stack([frame[0], 0 * frame[0], frame[2]])[None]
    rights, wrongs = (losses.alignment(v, owner, concept, frame) for v in (good, bad))
    for right, wrong in zip(rights, wrongs):
        assert right.value < 0.6 < wrong.value and right.count == wrong.count == 1


def test_prototypes_are_orthonormal_and_never_more_than_dimensions():
    frame = prototypes(12, 16)
    assert torch.allclose(frame @ frame.T, torch.eye(12), atol=1e-5)
    with pytest.raises(ValueError, match="at least as many"):
        prototypes(17, 16)


def test_patches_stay_in_the_unit_ball_and_on_the_finer_grid():
    head = PatchHead(20, 10, 8)
    patches = head(torch.randn(2, 20, 4, 7), torch.randn(2, 10, 8, 13))
    assert patches.shape == (2, 8, 13, 8) and patches.norm(dim=-1).max() <= 1.0
    assert AudioEncoder(8).eval()(torch.zeros(1, 128, 200)).shape == (1, 8, 13, 8)


@pytest.mark.shared
def test_the_audio_trunk_is_the_published_tagger():
    """With its own classifier the trunk names a recording as the published model does."""
    from pathlib import Path

    from avssl_ros import features
    from avssl_ros.audio_input import read_audio

    shared = Path(__file__).resolve().parents[3] / "shared"
    encoder = AudioEncoder(527).eval()
    encoder.load_pretrained(shared / "weights" / "mn04_as_mAP_432.pt", [(index,) for index in range(527)])
    state = torch.load(shared / "weights" / "mn04_as_mAP_432.pt", weights_only=True)
    labels = shared / "weights" / "audioset_527_labels.csv"
    names = [line.split(",", 2)[2].strip().strip('"') for line in open(labels)][1:]
    expected = {"dog_bark": "Dog", "rooster": "Chicken, rooster", "helicopter": "Helicopter", "chainsaw": "Chainsaw"}
    for folder, name in expected.items():
        path = sorted((shared / "data" / "esc10" / folder).iterdir())[0]
        x = torch.from_numpy(features.log_mel(features.as_mono(*read_audio(path))))[None, None]
        with torch.no_grad():
            pooled = encoder.features(x).mean((2, 3), keepdim=True)
            hidden = torch.nn.functional.hardswish(encoder.hidden(pooled))[..., 0, 0]
        scores = (hidden @ state["classifier.5.weight"].T + state["classifier.5.bias"])[0].numpy()
        assert name in [names[index] for index in np.argsort(-scores)[:5]], folder


def test_the_moving_average_forgets_the_start_within_a_short_run_and_is_slow_after_a_long_one():
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=moving_average(0.998))
    average.update_parameters(module)  # the first call copies
    module.weight.data.fill_(1.0)
    for _ in range(60):
        average.update_parameters(module)
    assert average.module.weight.item() > 0.95  # a fixed decay of 0.998 would be at 0.11
    for _ in range(10000):
        average.update_parameters(module)
    module.weight.data.fill_(2.0)
    average.update_parameters(module)
    assert average.module.weight.item() == pytest.approx(1.002, abs=1e-4)


def test_similarities_of_other_objectives_are_the_papers():
    """EZ-VSL: the best patch to the mean of the sound. DenseAV: each sound patch's best patch, averaged."""
    e = torch.eye(4)
    audio = torch.stack([e[0], e[1]])[None]
    visual = torch.stack([torch.stack([e[0], e[1], e[2]]), torch.stack([e[2], e[3], e[3]])])
    assert torch.allclose(losses.ez_vsl_similarity(audio, visual), torch.tensor([[0.5**0.5, 0.0]]))
    products = losses.dense_av_products(audio, visual)
    assert torch.allclose(losses.dense_av_similarity(products), torch.tensor([[1.0, 0.0]]))
    assert losses.dense_av_pressure(products).value == 0 and losses.dense_av_pressure(-products).value > 0


def test_contrast_wants_each_sound_at_its_own_picture():
    own = torch.arange(3)
    right, wrong = (losses.contrast(20 * similarity, own) for similarity in (torch.eye(3), torch.eye(3).roll(1, 0)))
    assert right.value < 1e-3 < 10 < wrong.value and right.count == 3


def test_sounds_of_one_picture_are_no_negatives_to_each_other():
    alike = torch.tensor([[20.0, 0, 0], [20, 0, 0], [0, 20, 0]])  # two sounds of the first picture, one of the second
    assert losses.contrast(alike, torch.tensor([0, 0, 1])).value < 1e-3


@pytest.mark.parametrize("objective", ["ez-vsl", "denseav"])
def test_only_sounds_of_what_is_in_view_are_contrasted(objective):
    """A mixture of something out of view, or of nothing, belongs to no picture."""
    generator = torch.Generator().manual_seed(0)
    visual, audio = (torch.randn(shape, generator=generator) / 8 for shape in ((2, 1, 6, 8), (2, 2, 5, 8)))
    ignore = losses.IGNORE
    batch = {"view_concept": torch.tensor([[[1, ignore, ignore]], [[2, ignore, ignore]]]),
             "sound_concept": torch.tensor([[[1, ignore], [2, ignore]], [[2, ignore], [ignore, ignore]]])}
    terms = contrastive_terms(visual, audio, batch, TrainConfig(objective=objective))
    assert terms["contrast"].count == 2
    moved = audio.clone()
    moved[:, 1] += 1
    assert contrastive_terms(visual, moved, batch, TrainConfig(objective=objective))["contrast"].total == pytest.approx(
        terms["contrast"].total)


@pytest.mark.parametrize("objective", ["ez-vsl", "denseav"])
def test_a_batch_in_which_nothing_heard_is_in_view_costs_nothing(objective):
    visual, audio = torch.ones(2, 1, 6, 8) / 8, torch.ones(2, 2, 5, 8) / 8
    batch = {"view_concept": torch.full((2, 1, 3), 1), "sound_concept": torch.full((2, 2, 2), losses.IGNORE)}
    terms = contrastive_terms(visual, audio, batch, TrainConfig(objective=objective))
    assert all(mean.value == 0 for mean in terms.values())
