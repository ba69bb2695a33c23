"""Names of series and files as scanners and archives write them, with their truth."""

import pytest

from adlib.sources.sequence import sequence_of

T1W = """
t1_mprage_sag_ipat2_1p0iso|MPRAGE_ipat2|t1_mpr_ns_sag_pat2_iso|T1w 3D Visit2|MP-RAGE REPEAT2|MPRAGE|MP-RAGE|MP RAGE
ADNI_MPRAGE|MPRAGE SENSE2|MPRAGE_REPEAT|MPRAGE GRAPPA2|Accelerated SAG IR-FSPGR|Accelerated Sagittal MPRAGE
SAG IR-SPGR|IR-FSPGR|IR-SPGR w/acceleration|SAG 3D MPRAGE|MPRAGE SAG|mprage S3_DIS3D|Sag IR-SPGR|SAG FSPGR BRAVO
3D BRAVO|BRAVO SAG 1mm|Ax BRAVO|WIP MPRAGE SENSE|WIP T1 3D TFE SENSE|T1_3D_TFE|sT1W_3D_TFE|T1W_3D_TFE_ref
sT1W_3D_TFE_32ch_SENSE|T1W/3D/TFE|3D T1 TFE|T1 3D TFE PHASE|T1W 3D TFE PhaseEnc AP|T1 MPRAGE survey protocol
T1 TFE Angio coil|T1_PD_protocol MPRAGE|t1_tfl3d|tfl3d1_16ns|tfl3d1|t1_tfl_sag|t1_vibe_tra|T1 VIBE DIXON|vibe
T1_SE_TRA|T1 SE axial|AX T1|Ax T1 FLAIR|SAG T1 FLAIR|T1 FLAIR|COR T1|T1w|T1W|T1|T1-weighted|t1weighted
T1_MPRAGE_1iso|T1w_MPR|T1w_MPR1|T1w_MPR_BIAS|T1w_MPR_vNav|ABCD_T1w_MPR_vNav|ABCD-T1|T1w_acpc|sub-01_T1w
sub-01_ses-02_T1w|sub-01_acq-mprage_T1w|sub-01_run-2_T1w|sub-P02_ses-2_acq-ipat2_T1w|sub-visit2_T1w
OAS1_0001_MR1_mpr-1_anon|OAS30001_MR_d0129_T1w|mpr-1|mpr_n4_anon_sbj_111|ADNI_002_S_0295_MR_MPR_Br
ADNI_002_S_0295_MR_MPRAGE_br_raw|IXI002-Guys-0828-T1|3D_T1|3DT1 MPRAGE|T1 3D SAG|3D SAG T1 ISO|T1_iso_1mm|T1_0.8mm
memprage|MEMPRAGE_4e_p2_1mm_iso|mp2rage|MP2RAGE_UNI-DEN T1|MP2RAGE_T1w|MP2 RAGE 0.7|t1_mp2rage_sag_p3_iso|MDEFT
t1_mdeft|FSPGR 3D|EFSPGR|SPGR|3D SPGR SAG|SAG 3D FSPGR|Ax FSPGR 3D|SAG T1 CUBE|T1 SPACE|t1_space_sag|T1_FFE|T1W_FFE
T1_FL3D|t1_fl2d_tra|T1 nativ|T1 ohne KM|T1 pre contrast|T1 without contrast|T1 w/o contrast|T1 no contrast
T1 non contrast|T1_pre|T1w postprocessed|T1 post op|T1 post-processed|head T1 MPRAGE Repeat2|WIP MPRAGE_SENSE2
MPRAGE_PAT2|T1MPRAGE|T1wMPRAGE|SagT1|AxT1|t1se|T1SE|t1_se_sag|T1 TSE cor|t1_tse_tra|t1_tirm_cor|COR T1 MPRAGE RECON
MPRAGE_NORM|t1_mprage_tra_p2_iso|t1_mprage_sag_p2|T1_mprage_1mm_p2_pos50|anat_T1w|anat-T1w|defaced_T1w|brain_T1w
""".replace("\n", "|")
AGENT = """
sub-01_ce-gadolinium_T1w|T1 +C|T1+C|AX T1 + C|3D T1 MPRAGE +C|T1 POST|T1 post contrast|T1_post_gad|T1 post Gd
T1 GAD|T1_Gd|T1 +Gd|T1 C+|T1ce|T1_ce|T1CE|T1c|BraTS_001_t1ce|MPRAGE POST|AX T1 POST GAD|T1 KM|t1_mprage_km
T1 mit KM|T1 with contrast|T1 contrast|SAG T1 POST|T1_gadolinium|T1 gadovist|T1 Dotarem|T1W_3D_TFE GD|BRAVO +C
FSPGR POST|T1 postcontrast|T1_postGd|AX 3D T1 MP-RAGE+C
""".replace("\n", "|")
OTHER = """
Ax T2|AX T2 FSE|t2_tse_tra|T2w|T2W_TSE|sub-01_T2w|T2 FLAIR|Ax T2 FLAIR|FLAIR|SAG 3D FLAIR|sub-01_FLAIR|Axial FLAIR
T2_FLAIR_SPACE|FLAIR CUBE|t2_star|T2*|AX T2 STAR|T2star|AX T2* GRE|T2starw|PD|PDw|sub-01_PDw|Axial PD-T2 TSE|PD T2
DWI|ep2d_diff_mddw|DTI|AXIAL DTI|dti_64|ADC|ADC map|AX DWI TRACE|TRACEW|ASL|pcASL|PASL|3D ASL|BOLD|rfMRI_REST
fMRI resting|Resting State fMRI|task-rest_bold|ep2d_bold_moco|SWI|SWI_Images|Mag SWI|TOF|3D TOF|TOF MRA|MRA|Angio
Survey|SURVEY|localizer|Localiser|3-plane localizer|scout|AAScout|AAHead_Scout|3 Plane Loc|Field Map|Field Mapping
B0 map|B1 map|gre_field_mapping phase|T1 map|T1_map|T1map|T1 Mapping|T1rho|INV1|MP2RAGE_INV1|t1_mp2rage_INV2
mp2rage inv 1|Perfusion|DSC perfusion|Perf_Weighted|CBF|QSM|Calibration Scan|Phase contrast|Calib|T1w_T2w_ratio
sub-01_magnitude1|sub-01_phasediff|sub-01_sbref|epi|Diffusion|UNIT1
""".replace("\n", "|")


def names(text):
    return [name for name in text.split("|") if name.strip()]


def test_there_are_many_names():
    assert len({*names(T1W), *names(AGENT), *names(OTHER)}) >= 200


@pytest.mark.parametrize("name", names(T1W))
def test_t1w_is_named(name):
    assert sequence_of(name).t1w, sequence_of(name)
    assert not sequence_of(name).agent, sequence_of(name)


@pytest.mark.parametrize("name", names(AGENT))
def test_contrast_agent_is_named(name):
    assert sequence_of(name).t1w and sequence_of(name).agent, sequence_of(name)


@pytest.mark.parametrize("name", names(OTHER))
def test_other_image_is_named(name):
    assert sequence_of(name).other and not sequence_of(name).t1w, sequence_of(name)


@pytest.mark.parametrize(
    "name", ["anat", "brain", "scan 3", "sub-01", "head", "volume", "I120562", "patient2", "3D SAG"]
)
def test_nothing_is_said(name):
    assert sequence_of(name) == type(sequence_of(name))(False, "", "")
