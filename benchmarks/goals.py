"""Figures of a benchmark and their goals."""

Figure = tuple[str, float, str, float]  # name, value, comparison, goal


def is_met(value: float, sign: str, goal: float) -> bool:
    """Whether a figure reaches its goal."""
    return value >= goal if sign == ">=" else value <= goal


def count_missed(*figures: Figure) -> int:
    """Print each figure with its goal; return the number of goals missed."""
    for name, *figure in figures:
        print("{}: {:.4g} (goal {} {:g}{})".format(name, *figure, "" if is_met(*figure) else ", MISSED"), flush=True)
    return sum(not is_met(*figure) for _, *figure in figures)
