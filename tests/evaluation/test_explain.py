"""Attribution finds the evidence, comes back to where it was cut from, and its checks notice maps that mean nothing."""

import copy
import dataclasses
from typing import get_args

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny_study import Tiny, make_study

from adlib.evaluation.explain import regions, sanity
from adlib.evaluation.explain.attribution import TITLES, ScanMaps, attribute, class_means
from adlib.evaluation.explain.sanity import FRACTIONS, _entry, cascade, gain, perturbation_curves
from adlib.evaluation.scores import resampled_means
from adlib.imaging import atlas
from adlib.imaging.volume import resample
from adlib.phantom.cohort import SCANNERS
from adlib.phantom.head import FIELD_MM, REFERENCE_AGE, Subject, anatomy, image_head, warp
from adlib.study.params import EvaluateParams, InputParams, PreprocessParams, load_params
from adlib.study.records import StudyError, read_table
from adlib.training.model_file import ModelCard
from adlib.training.network import ResNet50, slice_outputs
from adlib.training.slices import scan_slices

CORNER = (slice(4, 12), slice(20, 28))
GROWN = (slice(0, 16), slice(16, 32))  # what smoothing and the cells of a method may reach


class Corner(torch.nn.Module):
    """The answer depends on what is bright in the first channel; the second channel is not looked at."""

    explained_layer = "layer4"

    def __init__(self):
        super().__init__()
        self.layer4 = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 4, 4), torch.nn.ReLU())
        with torch.no_grad():
            self.layer4[0].weight.zero_()
            self.layer4[0].weight[:, 0] = 1 / 16
            self.layer4[0].bias.fill_(-0.3)

    def forward(self, x):
        evidence = self.layer4(x).sum((1, 2, 3))
        return torch.stack([-evidence, evidence], 1)


def squares(count=6):
    """Slices with a square of growing brightness in the corner, and another one where nobody looks."""
    x = np.random.default_rng(0).uniform(0.01, 0.1, (count, 3, 32, 32)).astype(np.float32)
    x[:, 0, *CORNER] += np.linspace(1, 2, count, dtype=np.float32)[:, None, None]
    x[:, 1, 20:28, 4:12] += 1.5
    return x


def card(plane="coronal", positions=(-32.0, -20.0, -8.0), size=64, resolution=2.0, classes=("CN", "AD")):
    given = InputParams(plane=plane, positions_mm=positions, size=size)
    return ModelCard("t", classes, True, given, PreprocessParams(resolution_mm=resolution), 1, {}, "r", "s", "c", 1)


def made_maps(values):
    scans = pd.DataFrame({"scan_id": [f"s{k}" for k in range(len(values))]})
    scans["participant_id"] = scans["scan_id"]
    scans["diagnosis"] = np.array(["CN", "AD"])[np.arange(len(values)) * 2 // len(values)]
    return ScanMaps(values, np.ones_like(values), scans)


@pytest.fixture(scope="module")
def trained():
    """A small network that has learnt to see a bright square, with slices and maps of it."""
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.5, (64, 3, 32, 32)).astype(np.float32)
    x[1::2, :, *CORNER] += 2
    y = torch.arange(64) % 2
    network = Tiny(2).train()
    steps = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(network(torch.from_numpy(x)), y).backward()
        steps.step()
    network.eval()
    assert (slice_outputs(network, x).argmax(1) == y.numpy()).mean() > 0.95
    ill = x[1::4]
    return network, ill, attribute(network, ill, 1)


@pytest.mark.parametrize("method", TITLES)
def test_every_method_finds_the_pixels_that_the_answer_depends_on(method):
    maps = attribute(Corner(), squares(), 1, method, apart=True)
    assert maps.shape == (6, 3, 32, 32) and maps.dtype == np.float32
    assert np.abs(maps[:, :, *GROWN]).sum() > 0.95 * np.abs(maps).sum() > 0
    channels = np.abs(maps).sum((0, 2, 3))
    if method == "grad_cam":
        np.testing.assert_allclose(channels, channels[0], rtol=1e-5)
    else:
        assert channels[0] > 0.99 * channels.sum()
    if method != "gradient_shap":  # which compares with the other slices
        assert maps.sum() > 0.95 * np.abs(maps).sum()
        assert attribute(Corner(), squares(), 0, method).sum() < 0


@pytest.mark.parametrize("method", TITLES)
def test_a_method_repeats_and_leaves_the_network_and_the_generators_alone(method):
    network = Corner()
    before, state = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (attribute(network, squares(), 1, method) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.layer4[0].weight.requires_grad and torch.equal(state, torch.random.get_rng_state())
    assert (numbers == np.random.get_state()[1]).all()  # noqa: NPY002


def test_integrated_gradients_add_up_to_the_difference_from_a_blank_slice(trained):
    network, x, maps = trained
    difference = slice_outputs(network, x)[:, 1] - slice_outputs(network, np.zeros_like(x))[:, 1]
    np.testing.assert_allclose(maps.sum((1, 2, 3)), difference, rtol=0.05)


def test_gradient_shap_adds_up_to_the_differences_from_the_other_slices():
    maps, outputs = attribute(Corner(), squares(40), 1, "gradient_shap"), slice_outputs(Corner(), squares(40))[:, 1]
    assert np.corrcoef(maps.sum((1, 2, 3)), outputs - outputs.mean())[0, 1] > 0.9


def test_the_names_of_methods_agree_and_others_are_refused():
    assert set(TITLES) == set(get_args(EvaluateParams.model_fields["attribution"].annotation))
    with pytest.raises(StudyError, match="unknown attribution 'lime'; there are integrated_gradients"):
        attribute(Corner(), squares(), 1, "lime")


@pytest.mark.parametrize("resolution", [2.0, 3.0])
@pytest.mark.parametrize(
    ("plane", "positions"),
    [
        ("coronal", (-32.0, -20.0, -8.0)),
        ("axial", (-18.0, 4.0)),
        ("sagittal", (-27.0,)),
        ("three_planes", (-18.0, -20.0, -27.0)),
    ],
)
def test_a_voxel_of_known_coordinate_comes_back_at_that_coordinate(plane, positions, resolution):
    mine = card(plane, positions, 96, resolution)
    base, mm = atlas.template(resolution), np.array([-27.0, -20.0, -18.0])  # the left hippocampus
    volume = np.zeros(base.mask.shape, np.float32)
    volume[tuple(np.round(nib.affines.apply_affine(np.linalg.inv(base.affine), mm)).astype(int))] = 1
    cut = scan_slices(volume, base.affine, mine.input)
    assert cut.max() == 1
    image = atlas.mni_image(regions.in_volume(cut, regions.slice_voxels(mine), volume.shape), base.affine)
    found = np.argwhere(image.get_fdata() > 0)
    assert len(found) == 1
    back = nib.affines.apply_affine(image.affine, found[0])
    assert np.abs(back - mm).max() <= resolution / 2 + 1e-6 and back[0] < -20
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), volume)


def test_pixels_on_the_left_of_a_coronal_slice_come_from_the_left_of_the_brain():
    mine = card()
    base, voxels = atlas.template(2.0), regions.slice_voxels(mine)
    x, y, z = (regions.in_slices(part, voxels) for part in atlas.coordinates(base.mask.shape, base.affine))
    assert (x[:, :, :, :30] < 0).all() and (x[:, :, :, 34:] > 0).all()
    assert (np.diff(z, axis=2) < 0).all()
    expected = np.add.outer(mine.input.positions_mm, (-4.0, 0.0, 4.0))
    assert np.abs(y - expected[:, :, None, None]).max() <= 1


def test_beyond_the_grid_there_is_no_voxel():
    mine = card("axial", (0.0,), 160, 3.0)
    voxels, mask = regions.slice_voxels(mine), atlas.template(3.0).mask
    assert (voxels[..., 0, 0] == -1).all() and not regions.in_slices(np.ones_like(mask), voxels)[..., 0, 0].any()
    cut = scan_slices(mask.astype(np.float32), atlas.template(3.0).affine, mine.input)
    np.testing.assert_array_equal(regions.in_slices(mask, voxels), cut > 0)


def test_a_voxel_that_several_channels_show_holds_their_mean():
    mine = card("coronal", (-20.0, -16.0), 64, 2.0)
    voxels = regions.slice_voxels(mine)
    values = np.broadcast_to(np.array([[1.0, 2, 3], [4, 5, 6]])[:, :, None, None], voxels.shape)
    volume = regions.in_volume(values, voxels, atlas.template(2.0).mask.shape)
    assert set(np.unique(volume)) == {0, 1, 3, 4, 6}  # -20 and -16 mm are each shown twice


@pytest.mark.parametrize(
    ("plane", "positions", "mode"),
    [("coronal", (-20.0, 3.0), "y"), ("sagittal", (5.0,), "x"), ("three_planes", (4.0, -20.0, -27.0), "ortho")],
)
def test_images_are_cut_where_the_slices_were(plane, positions, mode):
    found, where = regions.cut_positions(card(plane, positions))
    assert found == mode
    expected = positions[::-1] if plane == "three_planes" else positions  # nilearn takes x, y, z
    assert np.abs(np.subtract(where, expected)).max() <= 1


def test_images_of_the_classes_are_stored_and_old_ones_removed(tmp_path):
    params, mine = make_study(tmp_path), card()
    voxels = regions.slice_voxels(mine)
    left = np.where(regions.in_slices(atlas.region("hippocampus_left", 2.0), voxels), 1.0, 0.0)
    images = regions.class_images(made_maps(np.stack([0 * left, left]).astype(np.float32)), mine)
    old = params.folder / "attribution" / "space-x_desc-MCI_attribution.nii.gz"
    old.parent.mkdir()
    old.touch()
    regions.write_images(params, images)
    assert not old.exists()
    stored = nib.load(old.with_name("space-MNI152NLin2009aSym_desc-AD_attribution.nii.gz"))
    assert stored.get_data_dtype() == np.float32 and int(stored.header["sform_code"]) == 4
    np.testing.assert_allclose(stored.affine, atlas.template(2.0).affine)
    where = nib.affines.apply_affine(stored.affine, np.argwhere(stored.get_fdata() > 0))
    assert len(where) > 50 and where[:, 0].max() < -10 and where[:, 1].min() > -45
    assert not nib.load(old.with_name("space-MNI152NLin2009aSym_desc-CN_attribution.nii.gz")).get_fdata().any()


def test_the_regional_table_finds_where_the_attribution_was_put(tmp_path):
    params, mine = make_study(tmp_path), card()
    found = regions.pixel_regions(mine)
    left = found["hippocampus_left"].astype(np.float32)
    values = np.stack([np.ones_like(left), np.ones_like(left), left, left - 2 * found["ventricles"]])
    table = regions.regional_table(params, made_maps(values), mine).set_index(["diagnosis", "region"])
    even = table.loc["CN"].drop("brain")
    np.testing.assert_allclose(even[["ratio", "ratio_low", "ratio_high"]], 1)
    np.testing.assert_allclose(even["absolute"], even["pixels"])
    assert table.loc[("AD", "hippocampus_left"), "positive"] == 1
    pixels, blobs = left.sum(), found["ventricles"].sum()
    assert table.loc[("AD", "hippocampus_left"), "absolute"] == pytest.approx((1 + pixels / (pixels + 2 * blobs)) / 2)
    assert table.loc[("AD", "rest_of_brain"), "absolute"] == 0
    stored = read_table(params.folder / "attribution" / "regions.tsv", regions.REGIONAL)
    pd.testing.assert_frame_equal(stored.set_index(["diagnosis", "region"]), table)
    shown = regions.written_table(stored)
    assert shown.loc[("CN", "ventricles"), "ratio"] == "1.00 [1.00, 1.00]"


def test_a_region_that_no_slice_shows_has_no_ratio(tmp_path):
    params, mine = make_study(tmp_path), card("axial", (60.0,))
    values = np.ones((2, 1, 3, 64, 64), np.float32)
    table = regions.regional_table(params, made_maps(values), mine).set_index(["diagnosis", "region"])
    assert table.loc[("CN", "hippocampus_left"), "pixels"] == 0
    assert regions.written_table(table.reset_index()).loc[("CN", "hippocampus_left"), "ratio"] == "undefined"


def test_randomisation_goes_from_the_last_layer_down_and_leaves_the_rest(trained):
    network, x, _ = trained
    before = copy.deepcopy(network.state_dict())
    parts, done = ResNet50.stages, []
    for stage, random in cascade(network, x, 3):
        done += parts[stage]
        for name, value in random.state_dict().items():
            if name.endswith("weight"):
                same = name.startswith("bn1") or torch.equal(value, before[name])  # the start of bn1 is 1 for all
                assert same != (name.split(".")[0] in done) or name.startswith("bn1"), (stage, name)
    assert [name for name, _ in cascade(network, x, 3)] == ["fc", "layer4", "layer3", "layer2", "layer1", "stem"]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    again = [slice_outputs(random, x) for _, random in cascade(network, x, 3)]
    other = [slice_outputs(random, x) for _, random in cascade(network, x, 3)]
    np.testing.assert_array_equal(again, other)


def test_randomisation_destroys_the_maps(trained):
    network, x, maps = trained
    inside = np.ones(maps[0].shape, bool)
    corner = [np.abs(maps[:, :, *GROWN]).sum() / np.abs(maps).sum()]
    correlations = []
    for _, random in cascade(network, x, 3):
        other = attribute(random, x, 1)
        corner.append(np.abs(other[:, :, *GROWN]).sum() / np.abs(other).sum())
        pairs = zip(maps, other, strict=True)
        correlations.append(np.mean([sanity.rank_correlation(a, b, inside) for a, b in pairs]))
    assert sanity.rank_correlation(maps[0], maps[0], inside) == pytest.approx(1)
    assert sanity.rank_correlation(maps[0], np.zeros_like(maps[0]), inside) == 0
    assert abs(correlations[-1]) < 0.3
    assert corner[0] > corner[-1]


def test_deletion_falls_and_insertion_rises_faster_than_at_random_where_the_evidence_is_known():
    network, x = Corner(), squares()
    maps = attribute(network, x, 1).sum(1)
    curves = perturbation_curves(network, x, maps, 1, 0)
    intact, blank = slice_outputs(network, x)[:, 1], slice_outputs(network, np.zeros_like(x))[:, 1]
    for name in ("deletion", "random_deletion"):
        np.testing.assert_allclose(curves[name][:, [0, -1]], np.stack([intact, blank], 1), atol=1e-6)
    for name in ("insertion", "random_insertion"):
        np.testing.assert_allclose(curves[name][:, [0, -1]], np.stack([blank, intact], 1), atol=1e-6)
    early = FRACTIONS.tolist().index(0.5)
    assert (curves["deletion"][:, early] < 0.1 * intact).all() and (curves["insertion"][:, early] > 0.9 * intact).all()
    assert (gain(curves, "deletion") > 0.1).all() and (gain(curves, "insertion") > 0.1).all()
    wrong = perturbation_curves(network, x, -maps, 1, 0)
    assert (gain(wrong, "deletion") < 0).all() and (gain(wrong, "insertion") < 0).all()


def test_deletion_in_a_meaningless_order_gains_nothing_on_average():
    network, x = Corner(), squares(200)
    noise = np.random.default_rng(5).normal(size=(200, 32, 32))
    gains = gain(perturbation_curves(network, x, noise, 1, 0), "deletion")
    assert abs(gains.mean()) < 3 * gains.std() / np.sqrt(len(gains))


@pytest.mark.parametrize("of", regions.DEFINITIONS)
def test_the_overlap_is_one_by_chance_and_greatest_for_the_truth(of):
    region, brain = regions.changed_pixels(card(), of)
    assert region[brain].mean() == pytest.approx(regions.MOST_CHANGED, abs=0.001) and not region[~brain].any()
    rng = np.random.default_rng(0)
    known = region + rng.uniform(0, 0.1, (1, *region.shape))
    assert regions.ratio_to_chance(-known, region, brain)[0] == pytest.approx(1 / region[brain].mean())
    assert regions.ratio_to_chance(1.0 * ~region[None], region, brain)[0] == 0
    by_chance = regions.ratio_to_chance(rng.normal(size=(20, *region.shape)), region, brain)
    assert by_chance.mean() == pytest.approx(1, abs=0.1)


def heads(severity):
    return Subject(severity, REFERENCE_AGE, np.eye(4), shape_seed=1, scan_seed=2)


def test_the_volume_change_is_that_of_the_warp():
    """Against the determinant of the warp of one head, ill and well."""
    ill, well = (warp(heads(severity)) for severity in (1.0, 0.0))
    logs = []
    for moved in (ill, well):
        jacobian = (
            np.stack([np.stack(np.gradient(part, FIELD_MM)) for part in moved]) + np.eye(3)[:, :, None, None, None]
        )
        logs.append(np.log(np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))))
    base = atlas.template(3.0)
    change = np.abs(logs[0] - logs[1]).astype(np.float32)
    expected = resample(change, anatomy(FIELD_MM).affine, base.mask.shape, base.affine)
    assert np.corrcoef(expected[base.mask], regions.change("volume", 3.0)[base.mask])[0, 1] > 0.9
    assert regions.change("volume", 3.0)[atlas.region("hippocampus_left", 3.0)].mean() > 0.4


def test_the_image_change_is_that_of_the_images():
    """Against the scans of one head, ill and well, by a scanner without bias."""
    scanner = dataclasses.replace(SCANNERS[0], bias=0.0, noise=0.0)
    (ill, affine, *_), (well, *_) = (image_head(heads(severity), scanner, 3.0) for severity in (1.0, 0.0))
    base = atlas.template(3.0)
    difference = np.abs(ill.astype(np.float32) / ill.max() - well.astype(np.float32) / well.max())
    seen = resample(difference, affine, base.mask.shape, base.affine)
    seen, known = (gaussian_filter(image, 1.5)[base.mask] for image in (seen, regions.change("image", 3.0)))
    assert np.corrcoef(seen, known)[0, 1] > 0.7


def test_entries_are_means_with_intervals_over_participants():
    values = np.array([1.0, 1.0, 1.0, 5.0])
    scans = pd.DataFrame({"participant_id": ["a", "a", "a", "b"]})
    params = load_params("params/phantom.yaml", ("evaluate.bootstrap=400",))
    found = _entry(values, scans, params, check="c", of="x", metric="m")
    assert (found["point"], found["n"], found["participants"]) == (2.0, 4, 2)
    assert found["ci95"] == [1.0, 5.0]  # one person alone is drawn in more than 1 of 40 resamples
    assert resampled_means(np.ones((4, 3)), scans, 10, 1).shape == (11, 3)


def test_edges_are_steep_where_the_image_changes():
    x = np.zeros((1, 1, 3, 32, 32), np.float32)
    x[..., 16:] = 1
    found = sanity.edges(x)[0, 0, 0]
    assert found[:, 15:17].min() > 5 * found[:, :8].max()


def test_three_planes_are_drawn_one_by_one():
    values = np.zeros((2, 1, 3, 8, 8), np.float32)
    values[:, :, 2] = 1
    means = class_means(made_maps(values), ("CN", "AD"), "three_planes")
    assert means.attribution.shape == means.slices.shape == (2, 3, 8, 8)
    assert means.attribution[0].mean((1, 2)).tolist() == [0, 0, 1]
    assert class_means(made_maps(values), ("CN", "AD"), "coronal").attribution.shape == (2, 1, 8, 8)
