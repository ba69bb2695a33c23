"""What names of series and files say about the sequence, word by word.

Part of a word is no sign: iPAT2, visit2 and repeat2 hold the letters t2, and are names of T1-weighted scans.
"""

import re
from dataclasses import dataclass
from pathlib import PurePath

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2})|(?<=[a-z])(?=T[12])|(?<=\bi)(?=PAT)")
_PEOPLE = re.compile(r"(?:sub|ses)-[^_.]*")
_WORD = re.compile(r"\+\s?(?:c|gd|gad|contrast)\b|\bc\+|[a-z0-9]+", re.I)
_APART = re.compile(  # what stands between two words that are one
    r"(?<=t1|t2|b0|b1|fa)[\W_]+(?=map)|(?<=field)[\W_]+(?=map)|(?<=mp)[\W_]+(?=rage)|(?<=mp2)[\W_]+(?=rage)"
    r"|(?<=\bt)[\W_]+(?=[12]\b)|(?<=inv)[\W_]+(?=[12](?!\d))",
    re.I,
)
_T1W = re.compile(
    r"m?t1(?!map|rho|relax)\w*|[a-z]{0,3}?mp2?rage\w*|[a-z]{0,2}f?spgr\w*|bravo\w*|(?:t1|3d)?t?tfe\w*|tfl\w*|vibe|mdeft"
)
_MPR = re.compile(r"mpr")  # MPRAGE, and a reformatted image of any other sequence
# Signs of another image, even beside a word for T1w.
_OTHER = re.compile(
    r"t2(?!prep)\w*|dwi\w*|dti\w*|\w?adc|noddi|hardi|tensor|colfa|\w*[fd]mri\w*|bold|(?:mb)?p?c?asl\w*|swi\w*|swan"
    r"|tof\w*|mr[asv]|svs|csi|spectroscopy|tracew?|perf\w*|dsc|dce|(?:r|rel)?cb[fv]|mtt|ttp|qsm|fiesta\w*|ciss\w*"
    r"|(?:field|fa|b0|b1|t1|t2|tb1)map\w*|fmap|t1rho|inv[12]|locali[sz]e\w*|\w*scout|loc|m0scan|sbref|phasediff"
    r"|magnitude[12]?|unit1|mtr"
)
# Signs of another image, unless a word for T1w stands beside: names of options, parts of the body and of the exam.
_DOUBTFUL = re.compile(
    r"flair\w*|pdw?|\w{0,2}epi|rest\w*|angio\w*|veno\w*|survey|smartbrain|phase\w*|diff\w*|calib\w*|pdt2|stir"
    r"|mip|m[eg]?gre|b0\w*|hemo\w*|dreg"
)
_AGENT = re.compile(
    r"\+.*|c\+|gad\w*|gd(?:dtpa)?|gbca|postc\w*|postgd|post|[ck]ontrast\w*|ce|t1w?ce|t1c|t1gd|km|mdc|dotarem|clariscan"
    r"|(?:multi|pro)hance|magnevist|omniscan"
)
_WITHOUT = {"no", "non", "without", "wo", "pre", "before", "vor", "nativ", "ohne", "o", "sans", "sin", "senza"}
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
    split = _words(_CAMEL.sub(" ", name))
    words = [*split, *_words(name)]
    t1w = _first(_T1W, words)
    other = _first(_OTHER, words) or ("" if t1w else _first(_DOUBTFUL, words))
    return Sequence(bool(t1w or _first(_MPR, words)) and not other, other, _agent(split))


def _words(name: str) -> list[str]:
    return [match[0].lower().replace(" ", "") for match in _WORD.finditer(_APART.sub("", name))]


def _first(sign: re.Pattern[str], words: list[str]) -> str:
    return next((word for word in words if sign.fullmatch(word)), "")


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


def _agent(words: list[str]) -> str:
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        otherwise = before in _WITHOUT or (word == "post" and after in _AFTERWARDS | _WITHOUT)
        if _AGENT.fullmatch(word) and not otherwise:
            return word
    return ""
