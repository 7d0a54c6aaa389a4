"""How answers are counted: token F1, substring match, and the share of the text's gain that is kept."""

import random
import re
import string
from collections import Counter

from material import tokens

#: Draws of an interval.
DRAWS = 2000


def words(text: str) -> list[str]:
    """An answer's words without articles and signs (Rajpurkar et al. 2016)."""
    plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def f1(found: str, answers: list[str]) -> float:
    """The best token F1 over the answers that count."""
    def one(expected: str) -> float:
        a, b = words(found), words(expected)
        common = sum((Counter(a) & Counter(b)).values())
        return 2 * common / (len(a) + len(b)) if common else float(a == b)

    return max(one(answer) for answer in answers)


def match(found: str, answers: list[str]) -> float:
    """Whether one of the answers stands in what was found, token for token in lower case."""
    there = tokens(found)

    def one(answer: str) -> bool:
        wanted = tokens(answer)
        return bool(wanted) and any(there[at : at + len(wanted)] == wanted for at in range(len(there)))

    return float(any(one(answer) for answer in answers))


def interval(values: list[tuple[float, ...]], statistic) -> tuple[float, float] | None:
    """95 % of what `statistic` makes of the column sums of rows that are drawn with replacement (percentile bootstrap over
    questions; draws for which it gives None are left out, and where they are more than one in a hundred there is no
    interval)."""
    chance, found = random.Random(0), []
    for _ in range(DRAWS):
        rows = chance.choices(values, k=len(values))
        value = statistic(*(sum(column) for column in zip(*rows)))
        if value is not None:
            found.append(value)
    if len(found) < 0.99 * DRAWS:
        return None
    found.sort()
    return found[int(0.025 * len(found))], found[int(0.975 * len(found)) - 1]


def retained(none: float, text: float, xrag: float) -> float | None:
    """The share of the text's gain over nothing that is kept; None where the text gains nothing."""
    return (xrag - none) / (text - none) if text > none else None
