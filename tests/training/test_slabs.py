import csv

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from PIL import Image
from scipy import ndimage

from adlib.classify.model_store import REAL
from adlib.imaging import atlas
from adlib.preprocess.intensity import white_matter_mode
from adlib.preprocess.pipeline import preprocess_image
from adlib.sources.reading import list_source
from adlib.study.exec_params import HERE
from adlib.study.params import InputParams, PreprocessParams
from adlib.study.records import StudyError
from adlib.study.source_params import OasisSlicesSource
from adlib.training import model_file
from adlib.training.slabs import ATLAS_TO_MNI, FIRST, MASK, NOISE, SHAPE, cut_slab, read_slab
from adlib.training.slices import plane_slices, slab_slices

INPUT = InputParams(plane="coronal_2d", positions_mm=(-29.2, -25.1), channel_spacing_mm=1.03, size=148)


def pictures(slab, folder, white=120, first=FIRST):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"OAS1_0001_MR1.{first + k}.png" for k in range(slab.shape[1])]
    for k, path in enumerate(paths):
        Image.fromarray((white * slab[:, k].T[::-1]).round().clip(0, 255).astype(np.uint8)).save(path)
    return "|".join(map(str, paths[::-1]))


def spot(mm):
    """A template brain with one bright ball, 3 mm in radius."""
    base = atlas.template(1.0)
    away = np.linalg.norm(atlas.coordinates(base.t1.shape, base.affine) - np.reshape(mm, (3, 1, 1, 1)), axis=0)
    return np.where(away < 3, 3, base.t1).astype(np.float32), base.affine


def test_pictures_and_a_scan_make_one_slab(tmp_path):
    base = atlas.template(1.0)
    for unit in (1.0, 700.0):
        cut = cut_slab(base.t1 * np.float32(unit), base.affine, "made")
        read = read_slab(pictures(cut, tmp_path, white=97))
        assert cut.shape == read.shape == SHAPE
        np.testing.assert_allclose(read, cut, atol=0.02)
        white = cut_slab(base.wm, base.affine, "made") > 0.99
        assert abs(np.median(cut[white]) - 1) < 0.04
        np.testing.assert_allclose(
            plane_slices(pictures(cut, tmp_path, white=97), INPUT), slab_slices(cut, INPUT), atol=0.02
        )


@pytest.mark.parametrize("side", [-1, 1])
def test_a_point_of_mni_is_found_in_slab_and_slices(side):
    column, index, row = 87.5 + side * 30, 96, 60
    slab = cut_slab(*spot(apply_affine(ATLAS_TO_MNI, [column, index, row])), "made")
    found = np.average(np.argwhere(slab > 1.6), axis=0)
    np.testing.assert_allclose(found, [column, index - FIRST, row], atol=0.6)
    items = slab_slices(slab, INPUT)
    assert items.shape == (2, 3, 148, 148)
    rows, columns = np.nonzero(items[1, 1] > 1.6)
    np.testing.assert_allclose([rows.mean(), columns.mean()], [74 + 27.5, 74 - side * 30], atol=1.5)
    assert [(item[1] > 1.6).any() for item in items] == [False, True]


def test_scan_is_cut_with_the_mask_of_the_atlas():
    base = atlas.template(2.0)
    cut = cut_slab(np.ones_like(base.t1), base.affine, "made")
    np.testing.assert_array_equal(cut > 0, np.load(MASK)["mask"])
    brain = cut_slab(base.t1 * base.mask, base.affine, "made")
    np.testing.assert_array_equal(brain > 0, cut > 0)


def test_scan_gets_the_noise_of_the_pictures_once():
    base, rng, spreads = atlas.template(1.0), np.random.default_rng(1), []
    inside = ndimage.binary_erosion(np.load(MASK)["mask"], np.ones((5, 1, 5)))
    for sd in (0.0, 0.03, 0.1):
        volume = 1 + rng.normal(0, sd, base.t1.shape).astype(np.float32)
        spreads.append(cut_slab(volume, base.affine, "made")[inside].std())
    np.testing.assert_allclose(spreads[:2], NOISE, rtol=0.1)
    assert 1.3 * NOISE < spreads[2] < 0.1


@pytest.mark.realdata
def test_slices_of_all_people_have_the_mask_of_the_atlas(realdata, tmp_path):
    listed = list_source(OasisSlicesSource(kind="oasis_slices", root=realdata / "oasis1_coronal"), tmp_path, pool=HERE)
    mask = np.load(MASK)["mask"]
    for path in listed["path"][::40]:
        seen = read_slab(path) > 0
        assert not (seen & ~mask).any() and seen.sum() > 0.98 * mask.sum(), path


def test_white_matter_is_the_mode_above_the_median():
    rng = np.random.default_rng(0)
    parts = [rng.normal(level, spread, n) for level, spread, n in ((30, 12, 900), (75, 9, 3000), (112, 6, 2600))]
    values = np.concatenate(parts).clip(1)
    assert abs(white_matter_mode(values) - 112) < 2
    assert abs(white_matter_mode(values * 50) - 5600) < 100


def test_unusable_slabs_are_refused(tmp_path):
    slab = np.ones(SHAPE, np.float32)
    path = pictures(slab, tmp_path / "a")
    with pytest.raises(StudyError, match=r"indices 90 to 99.*got \[91, 92"):
        read_slab(path.rpartition("|")[0])
    with pytest.raises(StudyError, match=r"indices 90 to 99.*got \[10, 11"):
        read_slab(pictures(slab, tmp_path / "b", first=10))
    with pytest.raises(StudyError, match=r"\(170, 176\) pixels, expected \(176, 176\)"):
        read_slab(pictures(slab[:170], tmp_path / "c"))
    with pytest.raises(StudyError, match="holds no brain"):
        read_slab(pictures(slab * 0, tmp_path / "d"))
    with pytest.raises(StudyError, match=r"negative intensities; .*white_matter_peak"):
        cut_slab(atlas.template(3.0).t1 - np.float32(0.5), atlas.template(3.0).affine, "made")
    with pytest.raises(StudyError, match="outside the volume"):
        plane_slices(path, INPUT.model_copy(update={"positions_mm": (0.0,)}))


@pytest.mark.realdata
def test_brains_and_their_slices_look_alike_and_give_one_answer(realdata, tmp_path):
    root = realdata / "oasis1_manual"
    listed = list_source(OasisSlicesSource(kind="oasis_slices", root=realdata / "oasis1_coronal"), tmp_path, pool=HERE)
    paths = listed.set_index("scan_id")["path"]
    params = PreprocessParams(normalise="white_matter_peak")
    with (root / "participants.csv").open() as rows:
        people = {row["scan"]: row["subject"] for row in csv.DictReader(rows)}
    assert len(people) == 8
    classifier, changes = model_file.load(REAL.parent), []
    for scan, person in people.items():
        done = preprocess_image(nib.load(root / f"{scan}_SS.nii.gz"), params, scan)
        cut, read = cut_slab(done.t1w, done.affine, scan), read_slab(paths[f"{person}_MR1"])
        assert np.corrcoef(cut.ravel(), read.ravel())[0, 1] > 0.95, scan
        both = (cut > 0.9) & (read > 0.9)
        assert abs(np.median(cut[both]) - np.median(read[both])) < 0.05, scan
        slices = [slab_slices(slab, classifier.card.input) for slab in (cut, read)]
        of_cut, of_read = (model_file.classify_slices(classifier, each)[0].mean(0) for each in slices)
        changes.append(np.abs(of_cut - of_read).max())
    assert np.median(changes) < 0.05 and max(changes) < 0.12
