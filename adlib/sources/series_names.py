"""What series names and image types say about an MR sequence."""

from __future__ import annotations

import re

T1W = re.compile(r"t1|mp2?[ _-]?rage|f?spgr|bravo|(?<![a-z])t?tfe|(?<![a-z])tfl|vibe", re.I)
NOT_T1W = re.compile(
    r"t2|flair|(?<![a-z])(pd|dwi|dti|asl|swi|tof|adc|rest|epi|mra)(?![a-z])|diff|trace|bold|fmri|perf|field.?map|b0.?map"
    r"|t1.?map|inv[-_ ]?[12]|scout|locali[sz]er|survey|calib|angio|phase",
    re.I,
)
CONTRAST = re.compile(r"\+c\b|gad|\bgd\b|post|contrast", re.I)
# DICOM image types (PS3.3 C.7.6.1.1.2 and vendors' own) of what was computed from an acquired volume.
REFORMATTED = {"MPR", "PROJECTION IMAGE", "MIP", "MINIP", "LOCALIZER", "PHASE", "P", "IMAGINARY", "REAL", "T1 MAP"}
MAPS = {"ADC", "FA", "TRACEW", "DIFFUSION", "PERFUSION", "ASL", "FMRI", "BOLD", "T2 MAP", "T2_STAR MAP", "FIELD_MAP"}
