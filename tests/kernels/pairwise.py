"""A sample of a grid in which every two values of any two factors meet, far smaller than the grid."""

from itertools import combinations, product


def pairs(case):
    """The pairs of values that one case covers."""
    return {frozenset(two) for two in combinations(sorted(case.items(), key=str), 2)}


def allowed_cases(factors, allowed):
    cases = (dict(zip(factors, values, strict=True)) for values in product(*factors.values()))
    return [case for case in cases if allowed(case)]


def sample(factors, allowed=lambda case: True):
    """Cases, each the one that covers most pairs that none before covers; the same at every call."""
    candidates = allowed_cases(factors, allowed)
    missing = set().union(*map(pairs, candidates))
    chosen = []
    while missing:
        best = max(candidates, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen
