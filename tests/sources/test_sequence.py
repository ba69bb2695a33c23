"""Names of series and files as scanners and archives write them, with their truth."""

import pytest

from adlib.sources.sequence import sequence_of, sequence_of_file

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
T1w_MPR1_Norm|T1_MPRAGE_SAG_P2|ABCD_T1w_MPR_vNav_passive|MPRAGE 1mm iso|Accelerated Sagittal MPRAGE (MSV21)
Accelerated Sagittal IR-FSPGR|Accelerated Sag IR-SPGR|MPRAGE SENS|MPRAGE_ S3_DIS3D|MPRAGEADNI_confirmed
MPRAGE-REPEAT|MP RAGE SAGITTAL|MP-RAGE-|MPRAGE ASO|MPRAGE_ASO_repeat|MPR; ; N3; Scaled
MPR; GradWarp; B1 Correction; N3|MPR____N3__Scaled|MPR-R; ; N3; Scaled_2|MPR__GradWarp__B1_Correction__N3
MPR; GradWarp; N3; Scaled|MT1; GradWarp; N3m|MT1__N3m|Sag_3D_T1_FSPGR|ADNI       SH    MPRAGE|ADNI SH MPRAGE REPEAT
ADNI-R11   MPRAGE|ADNI_new_MPRAGE|AXIAL_3D_T1_SPGR|MPRAGE GRAPPA2(adni)|IR-FSPGR-Repeat|SAG IR-FSPGR-REPEAT
3D SAG IR PREP FSPGR|T1_MPRAGE_ISO_32ch|T1w_mpr_0.8mm|t1_mprage_sag_isoWIP|t1_mprage_sag_0.9_p3
t1_mprage_tra_iso_ND|t1_fl3d_sag|t1_fl3d_tra_iso|T1_MPRAGE_SAG_ND|SAG FSPGR 3D T1|FSPGR_SAG_TI550|3D FSPGR IR 1mm
SAG BRAVO PROMO|BRAVO_ASSET|Sag T1 BRAVO PROMO|ORIG SAG BRAVO PROMO|Ax 3D FSPGR IrPrep|3D Ax T1 FSPGR STEALTH
SPGR T1 ARC|T1 CUBE SAG 3D|sT1W_3D_TFE_1mm|WIP T1W_3D_TFE_SENSE|MPRAGE_SENSE|MPRAGE SENSE SAG|T1TFE|T1TFE_3D
WIP 3D T1 TFE_SAG|T1W_TFE_SAG_CS4|T1_TFE_1mm_SENSE|3D_T1TFE_SAG|T1W_3D_FFE|T1_3D_IR_TFE|3DT1_TFE_iso|IR-TFE 3D T1
WIP T1 MPRAGE 1mm|WIP_MPRAGE_SENSE_9_1|T1w/IR-TFE|T1W_IR_TFE|T1-IR|UKB T1_p2_1mm_fov256_sag_TI_880
T1_p2_1mm_fov256_sag_TI_880_UNBIASED|T1_p2_1mm_fov256_sag_TI_880|T1_unbiased_brain|T1_orig_defaced|HCP T1w_MPR2
tfl3d_ns_1mm|tfl3d1rs16ns|T1w_32CH|T1w_HCA|T1w_MPR_PMC|T1_mprage_ADNI3|3D_MPRAGE_T1_AXIAL
OAS30001_MR_d0129_run-01_T1w|sub-OAS30001_sess-d0129_T1w|sub-OAS30003_ses-d1631_run-02_T1w
OAS2_0001_MR1_mpr-1.nifti|oas1 mpr_n4_anon_111_t88|mpr-3_anon|IXI_T1|IXI014-HH-1236-T1
sub-NDARINV003RTV85_ses-baselineYear1Arm1_run-01_T1w|sub-CC110033_T1w|sub-PD001_T1w|sub-DTI01_T1w
sub-EPI12_ses-REST2_T1w|sub-T2D003_T1w|sub-SWI7_ses-post_T1w|sub-01_ses-postop_T1w|sub-01_ses-t2_T1w
sub-01_rec-norm_T1w|sub-01_acq-highres_T1w|PPMI 3D T1-weighted|3D T1 MP RAGE|3D T1 MPRAGE|SAG T1 3D FSPGR
3D_SAG_T1_MPRAGE|COR 3D FSPGR|T1-anatomical|3D T1-weighted MPRAGE|MPRAGE 2 ADNI|MPRAGE T1 SAG|AX 3D SPGR
AIBL T1 MPRAGE SAG ISO P2|MPRAGE ADNI confirmed|t1_mpr_1mm_p2_pos50|AX T1 SE C-|T1 C-|T1 SE NO GAD|T1 sin contraste
T1 sans gado|T1 vor KM|T1 without gad|T1W -C|T1 pre GD|PRE T1 MPRAGE|T1_axial_pre-contrast|Sag T1 wo|T1 W/O
T1 WO CONTRAST|T1 AX NON-CON|T1 noncontrast|t1_mprage_sag_p2_iso_MPR_Tra|T1 MPRAGE MPR COR|T1_MPRAGE 3D AX MPR
T1_mp2rage_UNI_Images|MP2RAGE_UNI_DEN|mp2rage_wip900_0.75iso_7T_UNI-DEN|MPRAGEPMC_1mm|MEMPRAGE_1mm_p2 RMS
T1_MEMPRAGE RMS|MEMPRAGE_4e_p2_1mm_iso RMS|SAG T1 MPRAGE PHASE OVERSAMPLING|T1 MPRAGE diff protocol|BRAIN T1 REST
head_T1_survey_repeat|T1_MPRAGE_SAG_ISO_SWAP|Sag MPRAGE FatSat|T1 fs tra|T1_TSE_FS|T1 DIXON W|t1_vibe_dixon_tra_W
T1 IR|T1_inv_sag|AX T1 IR|HEAD^T1|brain^routine T1 tra|Structural T1|anat_t1|T1 anatomy|T1_structural|highres T1
T1-hires|T1w_hires_RMS|t1_space_iso_p4|t1_spc_sag|T1 SPC|SAG T1 SPACE FS|T1_VISTA|VISTA T1|T1_3D_VISTA|T1 BB
T1 Black Blood|ISO T1 3D MPRAGE|FFE3D T1|3D GR T1|T1 3D GRE|t1_gre3d|T1_FLASH|FLASH 3D T1|t1_flash3d|t1_fl2d_sag
T1 FLASH|FLASH_T1_1mm
MPRAGE w/ GRAPPA|MPRAGE w/ GRAPPA 2|MPRAGEadni|SAG T1 3DMPRAGE|SAG MPRAGE GRAPPA2-NEW2016|Sag MPRAGE GRAPPA_ND
sT1W_3D_ISO|sag 3D FSPGR BRAVO straight|SAG T1 3D FSPGR 3RD REPEAT|axial spgr|T1W_3D_FFE AX|3D T1-weighted_ND
3D T1 _weighted|T1-weighted, 3D VOLUMETRIC|SAG FSPGR 3D VOLUMETRIC T1|tra_T1_MPRAGE|MPRAGE Phantom GRAPPA2
rpt_PPMI_MPRAGE_GRAPPA2|AX_3D_FSPGR_straight_brain_lab|MPRAGE_64channel_p2|MPRAGE_-_Sag|SAG 3D MPR
MP-RAGE REPEAT #3|IR-FSPGR (replaces MP-Rage)|MP-RAGE 24 FOV|MP-RAGE  REPEAT|STRUC BRAVO SAG3D ARC 1mm|COR SPGR
SAGITTAL T 1|AXIAL T 1|GRE3D_T1W|ANA T1W|HarP 135 final release 2015 MPRAGE
""".replace("\n", "|")
AGENT = """
sub-01_ce-gadolinium_T1w|T1 +C|T1+C|AX T1 + C|3D T1 MPRAGE +C|T1 POST|T1 post contrast|T1_post_gad|T1 post Gd
T1 GAD|T1_Gd|T1 +Gd|T1 C+|T1ce|T1_ce|T1CE|T1c|BraTS_001_t1ce|MPRAGE POST|AX T1 POST GAD|T1 KM|t1_mprage_km
T1 mit KM|T1 with contrast|T1 contrast|SAG T1 POST|T1_gadolinium|T1 gadovist|T1 Dotarem|T1W_3D_TFE GD|BRAVO +C
FSPGR POST|T1 postcontrast|T1_postGd|AX 3D T1 MP-RAGE+C
T1 mdc|t1_mprage_sag_GAD|SAG T1 GAD|COR T1 FS POST|AX T1 FS + GAD|3D BRAVO POST|BRAVO C+|Ax T1 Post Contrast
Ax T1 SE POST GD|T1 CE|T1-CE|T1ce MPRAGE|t1c_tra|T1 con contraste|T1 avec gado|T1 GADO|T1 Gd-DTPA|T1 POST-GAD
T1_POSTCONTRAST|T1 nach KM|t1_vibe_km|T1 KM tra|T1+GD|T1 +contrast|T1 W CONTRAST|T1 W/ CONTRAST|T1w ce|T1WCE
T1_3D_TFE +C|MPRAGE +GAD|MPRAGE POST CONTRAST|sub-01_ce-Gd_T1w|sub-01_ce-gbca_T1w|sub-01_acq-post_T1w|T1_Kontrast
T1 contrasté|T1w_postcontrast|STEALTH T1 POST|Sag T1 BRAVO PROMO +C|t1_mprage_post_iso|AXIAL T1 W/GAD|T1 with gad
T1 w gad|T1 POST INJ|T1 multihance|T1 prohance|T1 Magnevist|T1 MPRAGE Clariscan|T1 vibe kontrast
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
T2w_SPC1|T2w_SPC|T2w_SPC_vNav|ABCD_T2w_SPC_vNav|T2_FLAIR_SPC_1x1x1.05mm_fov256_IR|t2_space_sag_p4_iso|T2_SPC
t2_spc_da-fl_sag|Axial T2 STAR|Axial_T2-Star|Axial_T2_Star|Axial PD/T2 FSE|AX PD T2|PD_T2
AXIAL PD-T2 FSE|High Res Hippo T2|HiResHippo T2|Axial MB DTI|Axial rsfMRI (Eyes Open)|Axial MB rsfMRI (Eyes Open)
Axial 3D PASL (Eyes Open)|Axial 3TE T2 STAR|Sagittal 3D FLAIR|Sagittal 3D FLAIR_MPR|Axial Field Mapping
Perfusion_Weighted|relCBF|ASL_PERFUSION|B1-Calibration Head|B1-calibration Body|3-PLANE LOCALIZER|3 Plane Localizer
3plane loc SSFSE|Localizer_aligned|AAHScout|AAHScout_MPR_sag|AAHead_Scout_64ch-head-coil|AAHead_Scout_MPR_cor
localizer_32ch|Scout MPR|T1_scout|rfMRI_REST1_AP|rfMRI_REST1_AP_SBRef|tfMRI_FACENAME_PA|dMRI_dir98_AP
dMRI_dir98_AP_SBRef|SpinEchoFieldMap_AP|SpinEchoFieldMap1_PA|BOLD_REST1_AP|DWI_dir79_AP|PCASLhr_SPC_PA|PCASL_PA
mbPCASLhr_PA|ABCD_dMRI|ABCD_fMRI_rest|ABCD_DTI|ABCD_rsfMRI|MB8_FMRI_fov210_resting|MB8_FMRI_fov210_task
MB3_dMRI_100dir|SWI_TOTAL_MAG_notNorm|SWI_TOTAL_PHA|T2_FLAIR_orig_defaced|gre_field_mapping_2mm|ep2d_bold_rest
ep2d_diff_mddw_64_p2|ep2d_diff_3scan_trace_p2_ADC|ep2d_pasl|ep2d_perf|ep2d_tra_pasl_p2|tof_fl3d_tra_p2_multi-slab
TOF_3D_multi-slab|t2_swi_tra|mIP_Images(SW)|t2_tirm_tra_dark-fluid|t2_flair_tra|t2_blade_tra
PROPELLER T2|AX T2 PROPELLER|Ax T2 FLAIR PROPELLER|OAx T2 FRFSE|AX T2 FRFSE|T2W_TSE_TRA|T2W_FLAIR|sT2W_FLAIR
T2W_FFE|sDWI_SSh|DWI_b1000|dADC|dReg|isoDWI|eADC|DWIBS|WIP DTI_32|WIP DTI SENSE|FE_EPI|FEEPI SENSE|Ax SWAN|SWAN
COR T2*|AX GRE T2*|HEMO|QUANT T1 map|T1rho map|MOLLI T1map|T1_MAP_Images|t1_map|MTR_on|MTR map|Survey_32ch
SmartBrain|Coil survey|B1_calibration_brain|B0_map|COW TOF|MRA COW|3D PC MRA|MRV|phase contrast venogram|venogram
CISS|t2_ci3d|FIESTA|Ax FIESTA|3D FIESTA|STIR|COR STIR|T2 STIR|MRS|svs_se_135|csi_se
spectroscopy|DCE_perfusion|dsc_perf|CBV|MTT|TTP|rCBF|fmap|fieldmap_AP|gre_fieldmap|QSM_hr|mGRE|ME-GRE qsm
NODDI|multiband dwi|HARDI|trace|AX DWI|ISOTROPIC DWI|FA map|colFA|ep2d_diff_FA|tensor|sub-01_dir-AP_epi
sub-01_task-nback_run-1_bold|sub-01_dwi|sub-01_asl|sub-01_inplaneT2|sub-01_inv-1_MP2RAGE|sub-01_UNIT1|sub-01_T1map
sub-01_T2star|sub-01_PDT2|sub-01_angio|sub-01_swi|sub-01_phase1|sub-01_TB1map|sub-01_MEGRE
t2 cor|AX T2 AC-PC LINE ENTIRE BRAIN|AXIAL FSE T2 FS|*AX FSE T2|3-pl_T2__FGRE|AXIAL_T2_STAR
sT2W/PD_TSE|Axial PD-T2-FS TSE|AX PD + T2|Ax PD /T2|AX T2 DE|t2 weighted double echo|FLAIR_LongTR AX
Cor FLAIR TI_2800ms|t2_tirm_tra_dark-fluid NO BLADE|3D T2  SPC FLAIR C9C1HN007|3D_Brain_VIEW_FLAIR_SAG
SAG CUBE FLAIR|DTI_pulse gated_AC/PC line|TRIGGERED DTI|2D DTI EPI FAT SHIFT LEFT|Axial DTI L>R|DTI_gated_TRACEW
DTI_EXP|ep2d_RESTING_STATE|rsfMRI_LR|BOLD_RS ACPC_LINE|B0rf Map|Field_mapping|GRE B0|3_PLANE_LOC
MIDLINE_SAG_LOC|B1-Calibration PA (TE min full)|ASSET CALIBRATION|act_te = 6000 B1-Calibration Body
TFL_b1MAP_6MM|T2_SWI_TRA|diffuse|Localize|T2 flair
GRE3D_PDW
""".replace("\n", "|")


def read(name):
    return sequence_of_file(name) if name.startswith("sub-") else sequence_of(name)


def names(text):
    return [name for name in text.split("|") if name.strip()]


def test_there_are_many_names():
    assert len({*names(T1W), *names(AGENT), *names(OTHER)}) >= 650


@pytest.mark.parametrize("name", names(T1W))
def test_t1w_is_named(name):
    assert read(name).t1w, read(name)
    assert not read(name).agent, read(name)


@pytest.mark.parametrize("name", names(AGENT))
def test_contrast_agent_is_named(name):
    assert read(name).t1w and read(name).agent, read(name)


@pytest.mark.parametrize("name", names(OTHER))
def test_other_image_is_named(name):
    assert read(name).other and not read(name).t1w, read(name)


@pytest.mark.parametrize(
    "name", ["anat", "brain", "scan 3", "sub-01", "head", "volume", "I120562", "patient2", "3D SAG"]
)
def test_nothing_is_said(name):
    assert read(name) == type(read(name))(False, "", "")
