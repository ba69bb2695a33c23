"""Pretraining: simulated heads tell the truth, and the training on them can be interrupted, resumed and used."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from adlib import atlas
from adlib.model import Network, build_network
from adlib.pretrain import fit as fitting
from adlib.pretrain import heads, looks, planes, products, slices, targets
from adlib.records import StudyError, file_digest
from adlib.sources import phantom_head
from adlib.sources.phantom_fields import sample
from adlib.sources.phantom_head import FIELD_MM, MEASURED, RATES


def dense(moved, low, edges, shape):
    """Fractions (6, X, Y, Z) of a displaced head at the points of a grid, straight from the phantom's template."""
    affine = np.diag([*edges, 1.0])
    affine[:3, 3] = low
    template = phantom_head.anatomy(2.0)
    points = torch.from_numpy(atlas.coordinates(shape, affine))
    origin = torch.from_numpy(template.affine[:3, 3]).float().view(3, 1, 1, 1)
    pulled = points + sample(moved, heads.to_grid(points), "border")
    return sample(torch.from_numpy(template.measured), (pulled - origin) / 2).double().numpy()


def test_the_regions_add_up_to_the_phantoms_disease_and_ageing():
    points = (heads.grid_points() - phantom_head.field_anatomy().affine[:3, 3].reshape(3, 1, 1, 1)) / FIELD_MM
    for process, rates in RATES.items():
        whole = sample(torch.from_numpy(phantom_head.velocity(process)), torch.from_numpy(points).float(), "border")
        parts = np.array([[rates[name]] * 2 for name in heads.SPREAD], np.float32)
        together = np.tensordot(parts, heads.region_velocities(), axes=2)
        assert np.abs(together - whole.numpy()).max() < 1e-3 * float(whole.abs().max())


def test_volumes_order_heads_as_a_dense_sampling_does():
    quick, whole = [], []
    for number in range(6):
        moved = heads.displacement(heads.draw_head(5, number))
        quick.append([heads.volumes(moved)[name] for name in MEASURED])
        fractions = dense(moved, np.array(heads.GRID_LOW) + 0.5, (2.0, 2.0, 2.0), (85, 105, 93))
        whole.append(fractions.sum((1, 2, 3)) * 8 / 1000)
    for name, a, b in zip(MEASURED, np.transpose(quick), np.transpose(whole), strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.98 and a == pytest.approx(b, rel=0.25), name


def test_planes_show_what_the_whole_head_shows():
    head = heads.draw_head(5, 13)
    moved = heads.displacement(head)
    seen, names = targets.plane_values(planes.head_planes(head, moved, 2.0, jitter=False)[None])
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        low, shape = np.array(heads.GRID_LOW), [337, 417, 369]
        low[axis], shape[axis] = planes.POSITION[plane], 1
        gm, wm, csf, hippocampus, ventricles, _ = dense(moved, low, (0.5, 0.5, 0.5), shape).sum((1, 2, 3))
        total = gm + wm + csf
        assert seen[0, names.index(f"fluid_{plane}")] == pytest.approx(csf / total, abs=0.005)
        assert seen[0, names.index(f"gm_{plane}")] == pytest.approx(gm / total, abs=0.005)
        assert seen[0, names.index(f"ventricles_{plane}")] == pytest.approx(np.sqrt(ventricles / total), abs=0.005)
        if plane == "coronal":
            found = seen[0, names.index("hippocampus_coronal")]
            assert found == pytest.approx(np.sqrt(hippocampus / total), abs=0.005)


def test_a_sicker_head_loses_hippocampus_and_gains_ventricles():
    drawn = heads.draw_head(3, 0)
    assert (drawn.change == heads.draw_head(3, 0).change).all()
    step = np.array([[RATES["disease"][name]] * 2 for name in heads.SPREAD])
    worse = heads.Head(drawn.severity + 1, drawn.age, drawn.change + step, drawn.seed)
    before, after = (heads.volumes(heads.displacement(head)) for head in (drawn, worse))
    assert after["hippocampus"] < 0.8 * before["hippocampus"] and after["ventricles"] > 1.15 * before["ventricles"]
    assert after["icv"] == pytest.approx(before["icv"], rel=0.02)


def test_shards_are_kept_and_another_seed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(planes, "SHARD", 2)
    planes.write_shards(tmp_path, 4, 7, resolution_mm=2.0)
    before = [file_digest(planes.shard_path(tmp_path, n)) for n in (0, 1)]
    planes.shard_path(tmp_path, 1).unlink()
    stamp = planes.shard_path(tmp_path, 0).stat().st_mtime_ns
    planes.write_shards(tmp_path, 4, 7, resolution_mm=2.0)
    assert planes.shard_path(tmp_path, 0).stat().st_mtime_ns == stamp
    seen, facts = planes.read_shards(tmp_path, 3)
    assert seen.shape == (3, 3, 6, planes.SIZE, planes.SIZE) and facts.shape == (3, len(planes.FACTS))
    with np.load(planes.shard_path(tmp_path, 1)) as again:
        assert (again["planes"][0] == seen[2]).all()
    assert file_digest(planes.shard_path(tmp_path, 0)) == before[0]
    with pytest.raises(StudyError, match="another seed"):
        planes.write_shards(tmp_path, 4, 8, resolution_mm=2.0)
    with pytest.raises(StudyError, match=r"lacks shard-0002\.npz of 6 heads"):
        planes.read_shards(tmp_path, 6)


def discs(count, seed=0):
    """Made heads: a disc of white matter in a ring of grey matter, about ventricles whose size grows with severity."""
    rng, (y, x) = np.random.default_rng(seed), np.indices((96, 96)) - 47.5
    radius, severity = np.hypot(x, y), rng.uniform(0, 1, count)
    made = np.zeros((count, 3, 6, 96, 96), np.uint8)
    made[:, :, 5] = 127
    made[:, :, 0] = 255 * ((radius > 30) & (radius < 38))
    for number, value in enumerate(severity):
        inner = radius < 6 + 14 * value
        made[number, :, 1], made[number, :, 3] = 255 * ((radius <= 30) & ~inner), 255 * inner
    facts = np.ones((count, 9)) + 0.01 * severity[:, None] * np.arange(1, 10)
    return made, facts.astype(np.float32)


def test_targets_are_standardised_over_the_heads_that_are_learnt_from():
    made, facts = discs(12)
    found = targets.make_targets(made, facts, slice(0, 8))
    assert found.values[:8].mean(0) == pytest.approx(0, abs=1e-4)
    used = found.sd != 1
    assert found.values[:8, used].std(0) == pytest.approx(1, abs=1e-3)
    raw = found.values[:, 4] * found.sd[4] + found.mean[4]
    assert raw == pytest.approx(np.log(facts[:, 4] / facts[:, 6]), abs=1e-5)


def test_a_look_is_drawn_by_its_generator_alone_and_fluid_stays_dark():
    made = torch.from_numpy(discs(8)[0])
    drawn = [looks.images(made, 48, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
    assert drawn[0].shape == (8, 3, 48, 48) and float(drawn[0].max()) <= looks.CLIP + 1e-6
    middle, white = drawn[0][:, :, 22:26, 22:26], drawn[0][:, :, 11:14, 22:26]
    assert (middle.mean((2, 3)) < 0.75 * white.mean((2, 3))).all()


def test_normalisation_does_not_depend_on_the_gain():
    x = looks.images(torch.from_numpy(discs(2)[0]), 48, torch.Generator().manual_seed(0))
    assert torch.allclose(looks.normalised(3.7 * x), looks.normalised(x), atol=1e-5)
    flat = looks.normalised(x)[0, 0].flatten()
    bright = flat[flat > looks.BRIGHT * flat.sort().values[int(0.98 * (len(flat) - 1))]]
    assert float(bright.quantile(0.8)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("kernel", "kind"), [(1, products.PointwiseProduct), (3, products.WindowProduct)])
@pytest.mark.parametrize("stride", [1, 2])
def test_products_are_convolutions(kernel, kind, stride):
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, kernel, stride, kernel // 2, bias=False).double()
    x = torch.randn(3, 5, 6, 5, dtype=torch.float64, requires_grad=True)
    expected = plain(x)
    by_hand = torch.autograd.grad(expected.square().sum(), [x, plain.weight])
    plain.__class__ = kind
    assert torch.allclose(plain(x), expected)
    for a, b in zip(torch.autograd.grad(plain(x).square().sum(), [x, plain.weight]), by_hand, strict=True):
        assert torch.allclose(a, b)


SHORT = fitting.Settings(images=96, batch=16, size=32, warmup=2, every=2)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(fitting, "CHECKED", 16)


def weights(path):
    return fitting.load_pretrained(path).network.state_dict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training: its folder, and its losses on unseen heads."""
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "CHECKED", 16)
        fitting.pretrain(*discs(64), folder, SHORT)
    history = torch.load(folder / fitting.CHECKPOINT, weights_only=True)["history"]
    return folder, [row["loss"] for row in history]


def test_an_interrupted_training_ends_with_the_same_weights(trained, few, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(line):
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(fitting, "_line", stop)
        fitting.pretrain(*discs(64), tmp_path, SHORT)
    assert torch.load(tmp_path / fitting.CHECKPOINT, weights_only=True)["step"] == 2
    fitting.pretrain(*discs(64), tmp_path, SHORT)
    whole, resumed = weights(trained[0] / fitting.WEIGHTS), weights(tmp_path / fitting.WEIGHTS)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_other_heads_or_another_end_of_the_decay_are_refused(trained, few):
    with pytest.raises(StudyError, match="other settings or heads"):
        fitting.pretrain(*discs(64, seed=1), trained[0], SHORT)
    longer = replace(SHORT, images=400)
    with pytest.raises(StudyError, match="learning rate falls from"):
        fitting.pretrain(*discs(64), trained[0], longer)


def test_training_lowers_the_loss_on_unseen_heads(few, tmp_path):
    settings = fitting.Settings(images=640, batch=16, size=32, warmup=5, every=10)
    fitting.pretrain(*discs(96), tmp_path, settings)
    history = torch.load(tmp_path / fitting.CHECKPOINT, weights_only=True)["history"]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["r2_severity"] > 0.5


def test_the_body_loads_into_a_study_by_path(trained):
    path = trained[0] / fitting.WEIGHTS
    network, origin = build_network(3, f"path:{path}")
    assert origin == "weights of pretrained.safetensors"
    stored = weights(path)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items() if name[:3] != "fc.")
    made = fitting.load_pretrained(path)
    assert made.names[: len(targets.VOLUMES)] == targets.VOLUMES and made.network.fc.out_features == len(made.names)


def test_another_file_is_no_pretrained_network(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(StudyError, match="adlib-pretrained-1"):
        fitting.load_pretrained(tmp_path / "a.safetensors")


def test_real_slices_are_read_upright_with_their_background_at_zero(tmp_path):
    image = np.full((200, 256), 17, np.uint8)
    image[60:140, 60:200] = 100
    image[60:140, 180:200] = 200  # at the top of the picture, since the second axis runs upwards
    names = [tmp_path / f"{n}.nii.gz" for n in "abc"]
    for name in names:
        nib.save(nib.Nifti1Image(image, np.eye(4)), name)
    found = slices.read_slices("|".join(map(str, names)))
    assert found.shape == (3, planes.SIZE, planes.SIZE)
    assert found[:, 0].max() == 0 and found[0, 25, 48] == pytest.approx(180) and found[0, 60, 48] == pytest.approx(80)
    x = slices.network_input(found[None], 64)
    assert x.shape == (1, 3, 64, 64) and float(x.max()) <= looks.CLIP + 1e-6
    with pytest.raises(StudyError, match="got 2 files"):
        slices.read_slices("|".join(map(str, names[:2])))
    nib.save(nib.Nifti1Image(np.full((9, 9), 3, np.uint8), np.eye(4)), names[0])
    with pytest.raises(StudyError, match="constant"):
        slices.read_slices("|".join(map(str, names)))


def test_adapting_takes_the_statistics_of_the_given_images_and_leaves_the_network_alone():
    torch.manual_seed(0)
    network = Network(4)
    x = 2 + torch.rand(6, 3, 32, 32)
    fresh = slices.adapted(network, x)
    expected = network.conv1(x).mean((0, 2, 3))
    assert torch.allclose(fresh.bn1.running_mean, expected, rtol=0.02, atol=0.02)
    assert torch.equal(network.bn1.running_mean, torch.zeros(64))


def test_what_is_told_does_not_depend_on_the_side():
    torch.manual_seed(0)
    network, x = Network(4).eval(), torch.rand(5, 3, 32, 32)
    flipped = x.clone()
    flipped[:, :2] = flipped[:, :2].flip(-1)
    outputs, features = slices.tell(network, x)
    again, _ = slices.tell(network, flipped)
    assert outputs.shape == (5, 4) and features.shape == (5, 2048)
    assert np.allclose(outputs, again, atol=1e-3)
