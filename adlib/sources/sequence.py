"""What names of series and files say about the sequence, word by word.

Part of a word is no sign: iPAT2, visit2 and repeat2 hold the letters t2, and are names of T1-weighted scans.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2})|(?<=[a-z])(?=T[12])|(?<=\bi)(?=PAT)")
_PEOPLE = re.compile(r"(?:sub|ses)-[^_.]*")
_WORD = re.compile(r"\+\s?(?:c|gd|gad|contrast)\b|\bc\+|[a-z0-9]+", re.I)
_T1W = re.compile(
    r"t1(?!map|rho|relax)\w*|[a-z]{0,3}?mp2?rage\w*|mpr|[a-z]{0,2}f?spgr\w*|bravo\w*|(?:t1|3d)?t?tfe\w*|tfl\w*|vibe|mdeft"
)
# Signs of another image, even beside a word for T1w.
_OTHER = re.compile(
    r"t2(?!prep)\w*|dwi\w*|dti\w*|adc|bold|(?:rs|task|f)*fmri|p?c?asl|swi\w*|tof\w*|mra|tracew?|perf\w*|dsc|dce|cbf|qsm"
    r"|(?:field|b0|b1|t1|t2)map\w*|t1rho|inv[12]|locali[sz]er\w*|\w*scout|loc|m0scan|sbref|phasediff|magnitude[12]?|unit1|mtr"
)
# Signs of another image, unless a word for T1w stands beside: names of options, parts of the body and of the exam.
_DOUBTFUL = re.compile(r"flair\w*|pdw?|epi|rest\w*|angio\w*|survey|phase\w*|diff\w*|calib\w*|pdt2")
_PAIRS = {  # two words that are one
    **{(part, "map"): f"{part}map" for part in ("t1", "t2", "field", "b0", "b1")},
    **{("mp", "rage"): "mprage", ("mp2", "rage"): "mp2rage", ("inv", "1"): "inv1", ("inv", "2"): "inv2"},
    **{("t1", "mapping"): "t1map", ("field", "mapping"): "fieldmap", ("phase", "contrast"): "phasecontrast"},
}
_AGENT = re.compile(r"\+.*|c\+|gad\w*|gd(?:dtpa)?|gbca|postc\w*|postgd|post|contrast\w*|ce|t1ce|t1c|t1gd|km|dotarem")
_WITHOUT = {"no", "non", "without", "wo", "pre", "before", "vor", "nativ", "ohne", "o", "sans"}
_AFTERWARDS = {"op", "surgery", "processed", "proc", "treatment", "tx", "rt", "norm"}  # what "post" may also refer to


@dataclass(frozen=True)
class Sequence:
    """What a name says.

    Attributes
    ----------
    t1w : bool
        It is named as T1-weighted.
    other : str
        The word for another image; empty where there is none.
    agent : str
        The word for a contrast agent; empty where there is none.
    """

    t1w: bool
    other: str
    agent: str


def sequence_of(name: str) -> Sequence:
    """Read the name of a series or file.

    Parameters
    ----------
    name : str
        Such as ``t1_mprage_sag_ipat2``, ``Ax T2 FLAIR``, ``sub-01_ce-gadolinium_T1w``.

    Returns
    -------
    Sequence
    """
    words = _words(name)
    t1w = any(_T1W.fullmatch(word) for word in words)
    other = next((word for word in words if _OTHER.fullmatch(word)), "")
    if not (t1w or other):
        other = next((word for word in words if _DOUBTFUL.fullmatch(word)), "")
    return Sequence(t1w and not other, other, _agent(words))


def sequence_of_file(path: str) -> Sequence:
    """Read the name of a file, but for the participant and session in it, as BIDS writes them.

    Parameters
    ----------
    path : str

    Returns
    -------
    Sequence
    """
    return sequence_of(_PEOPLE.sub("", PurePath(path).name))


def _words(name: str) -> list[str]:
    words: list[str] = []
    for word in (match[0].lower().replace(" ", "") for match in _WORD.finditer(_CAMEL.sub(" ", name))):
        if words and (words[-1], word) in _PAIRS:
            words[-1] = _PAIRS[words[-1], word]
        else:
            words.append(word)
    return words


def _agent(words: list[str]) -> str:
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if not _AGENT.fullmatch(word) or before in _WITHOUT or (word == "post" and after in _AFTERWARDS):
            continue
        if word == "post" and after in _WITHOUT:
            continue
        return word
    return ""
