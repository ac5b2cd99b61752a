"""Exercises and questions of notebook 03: references, known mistakes, hints, answers."""

import math

import torch

from rlgenkit import workbook as wb

# --- 03.1: the chances of the ranks


def pick_chances(pool, n):
    """Chance that rank 1..pool wins a draw of n: ints -> float64 [pool]."""
    ways = [math.comb(rank - 1, n - 1) for rank in range(1, pool + 1)]
    return torch.tensor(ways, dtype=torch.float64) / math.comb(pool, n)


def _worst_first(pool, n):
    return pick_chances(pool, n).flip(0)


def _with_itself(pool, n):
    ways = [math.comb(rank, n) for rank in range(1, pool + 1)]
    return torch.tensor(ways, dtype=torch.float64) / math.comb(pool, n)


def _replaced(pool, n):
    return (torch.arange(pool + 1, dtype=torch.float64) / pool).pow(n).diff()


def _sizes(generator):
    """A pool of 5 to 9 and a draw of 2 to 4."""
    pool, n = torch.randint(5, (), generator=generator), torch.randint(3, (), generator=generator)
    return [5 + int(pool), 2 + int(n)]


# --- 03.2: the value of the pick


def best_of(score, value, n):
    """Mean value of what best-of-n by score picks: [N], [N], int -> scalar."""
    worth = value[score.argsort()].double()
    return (pick_chances(len(score), n) * worth).sum()


def _by_value(score, value, n):
    return best_of(value, value, n)


def _of_score(score, value, n):
    return best_of(score, score, n)


def _lowest(score, value, n):
    return best_of(-score, value, n)


def _top(score, value, n):
    return value[score.argsort()][-n:].double().mean()


def _n_ignored(score, value, n):
    return value[score.argmax()].double()


def _scored(generator):
    """Eight scores, eight values that partly follow them, a draw of 2 to 4."""
    score, noise = torch.randn(2, 8, generator=generator)
    return [score, 0.5 * score + noise, 2 + int(torch.randint(3, (), generator=generator))]


# --- 03.3: the accuracy of a pair test


def pair_accuracy(clean, damaged):
    """Share of pairs in which the clean picture scores higher, ties half: [P], [P]."""
    ahead = (clean > damaged).double()
    return (ahead + 0.5 * (clean == damaged)).mean()


def _ties_lost(clean, damaged):
    return (clean > damaged).double().mean()


def _ties_dropped(clean, damaged):
    apart = clean != damaged
    return (clean > damaged)[apart].double().mean()


def _ties_won(clean, damaged):
    return (clean >= damaged).double().mean()


def _prefers_damage(clean, damaged):
    return pair_accuracy(damaged, clean)


def _every_with_every(clean, damaged):
    ahead = (clean[:, None] > damaged[None]).double()
    return (ahead + 0.5 * (clean[:, None] == damaged[None])).mean()


def _pairs(generator):
    """Nine pairs, two of them tied, the damaged picture lower more often than not."""
    clean = torch.randn(9, generator=generator)
    damaged = clean - 0.3 + 0.6 * torch.randn(9, generator=generator)
    damaged[:2] = clean[:2]
    damaged[2:4] = clean[2:4] - 1
    return [clean, damaged]


# --- 03.4: rank correlation


def _ranks(x):
    below = (x[None, :] < x[:, None]).sum(1)
    equal = (x[None, :] == x[:, None]).sum(1)
    return below + (equal + 1) / 2


def rank_correlation(a, b):
    """Correlation of the ranks of a and b, in -1..1: [K], [K] -> scalar."""
    first, second = _ranks(a) - _ranks(a).mean(), _ranks(b) - _ranks(b).mean()
    return (first * second).sum() / (first.norm() * second.norm())


def _of_values(a, b):
    first, second = a - a.mean(), b - b.mean()
    return (first * second).sum() / (first.norm() * second.norm())


def _not_centered(a, b):
    first, second = _ranks(a), _ranks(b)
    return (first * second).sum() / (first.norm() * second.norm())


def _ties_in_order(a, b):
    first, second = a.argsort(stable=True).argsort(), b.argsort(stable=True).argsort()
    return _of_values(first.float(), second.float())


def _without_ties(a, b):
    apart = (_ranks(a) - _ranks(b)).square().sum()
    return 1 - 6 * apart / (len(a) * (len(a) ** 2 - 1))


def _columns(generator):
    """Seven numbers with a tie, one of them huge, and seven that follow loosely."""
    a = torch.randn(7, generator=generator).round(decimals=1)
    a[1], a[6] = a[0], 50.0
    return [a, a.clamp(max=3) + torch.randn(7, generator=generator)]


# --- 03.5: draws with replacement


def chances_with_replacement(pool, n):
    """Chance of each rank if draws may repeat a sample: ints -> float64 [pool]."""
    return (torch.arange(pool + 1, dtype=torch.float64) / pool).pow(n).diff()


def _replaced_worst_first(pool, n):
    return chances_with_replacement(pool, n).flip(0)


def _not_differenced(pool, n):
    return (torch.arange(1, pool + 1, dtype=torch.float64) / pool).pow(n)


# --- 03.6: the say of the parts of a sum


def say_of(parts, groups):
    """Share [K] of each part in a sum: its spread within groups over the sum of all spreads."""
    spreads = []
    for part in parts:
        means = torch.stack([part[groups == group].mean() for group in groups])
        spreads.append((part - means).square().mean().sqrt())
    return torch.stack(spreads) / sum(spreads)


def _whole_spread(parts, groups):
    spreads = torch.stack([part.std(correction=0) for part in parts])
    return spreads / spreads.sum()


def _mean_of_spreads(parts, groups):
    spreads = []
    for part in parts:
        own = [part[groups == group].std(correction=0) for group in groups.unique()]
        spreads.append(torch.stack(own).mean())
    return torch.stack(spreads) / sum(spreads)


def _by_size(parts, groups):
    sizes = torch.stack([part.abs().mean() for part in parts])
    return sizes / sizes.sum()


def _squared(parts, groups):
    spreads = say_of(parts, groups) ** 2
    return spreads / spreads.sum()


def _sum_of_two(generator):
    """Two parts over three groups: one differs between groups most, one within them."""
    groups = torch.arange(3).repeat_interleave(4)
    noise = torch.randn(2, 12, generator=generator)
    return [[3.0 * groups + 0.2 * noise[0], noise[1]], groups]


# --- questions


def _small_say(seed):
    """Whether a part with a spread of 0.02 beside one of 0.5 has under 5 % of the say."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 500, generator=generator)
    say = say_of([0.5 * noise[0], 0.02 * noise[1]], torch.zeros(500).long())
    return float(say[1]) < 0.05


def _turning(seed):
    """Whether the pick's truth 1 - (x - 1)^2 rises, then falls as n grows (scores are normal)."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(64, generator=generator)
    worth = -((score - 1) ** 2)
    values = [float(best_of(score, worth, n)) for n in (1, 4, 64)]
    return values[0] < values[1] and values[2] < values[1]


EXERCISES = {
    "03.1": wb.Exercise(
        reference=pick_chances, inputs=_sizes, minutes=10, difficulty=2,
        wrong={
            "rank 1 is the lowest score: the last entry must be the largest": _worst_first,
            "the winner itself is one of the n: only n - 1 others are chosen below it":
                _with_itself,
            "the draws are without replacement": _replaced,
        },
        hints=["If the sample of rank k wins, where do the other n - 1 of the draw come from?",
               "math.comb(a, b) counts the ways to choose b of a; it is 0 where b > a."]),
    "03.2": wb.Exercise(
        reference=best_of, inputs=_scored, minutes=5, difficulty=2,
        wrong={
            "the reward picks, not the value: sort by score": _by_value,
            "sum the values of the picks, not their scores": _of_score,
            "the highest score wins, not the lowest": _lowest,
            "n is the size of a draw; only one of the draw is picked": _top,
            "the highest of all is not in every draw: weigh by `pick_chances`": _n_ignored,
        },
        hints=["`score.argsort()` lists the samples from the lowest to the highest score.",
               "Chances times values, summed: an expectation."]),
    "03.3": wb.Exercise(
        reference=pair_accuracy, inputs=_pairs, minutes=5, difficulty=1,
        wrong={
            "a tie counts one half": _ties_lost,
            "keep tied pairs in the count, each as one half": _ties_dropped,
            "a tie counts one half, not a whole": _ties_won,
            "right is to prefer the clean picture": _prefers_damage,
            "a clean picture is compared with its own copy only": _every_with_every,
        },
        hints=["A comparison of two tensors gives Booleans; their mean is a share.",
               "What should a reward get that sees no difference at all?"]),
    "03.4": wb.Exercise(
        reference=rank_correlation, inputs=_columns, minutes=10, difficulty=2,
        wrong={
            "take the ranks, or one huge value decides everything": _of_values,
            "subtract the mean rank first": _not_centered,
            "equal values share their mean rank: use `ranks`": _ties_in_order,
            "the formula with squared differences of ranks holds without ties only": _without_ties,
        },
        hints=["`ranks` above does the first half of the work.",
               "A correlation is the cosine of the angle between two centered vectors."]),
    "03.5": wb.Exercise(
        reference=chances_with_replacement, inputs=_sizes, minutes=10, difficulty=3,
        wrong={
            "that is without replacement": pick_chances,
            "the lowest score comes first": _replaced_worst_first,
            "that is the chance to be at most this rank, not to be this rank": _not_differenced,
        },
        hints=["All n draws fall among the k lowest with chance (k/N)^n.",
               "The highest is exactly k if all are at most k, but not all at most k - 1."]),
    "03.6": wb.Exercise(
        reference=say_of, inputs=_sum_of_two, minutes=10, difficulty=3,
        wrong={
            "a spread between captions moves no pick: take off the mean of each group":
                _whole_spread,
            "one spread over all pictures: average the squares of all groups, then the root":
                _mean_of_spreads,
            "the say depends on the spread, not on the size of the numbers": _by_size,
            "spreads themselves, not their squares": _squared,
        },
        hints=["What do all pictures of a caption have in common, and can it change which wins?",
               "Subtract from each score the mean of its own group before you take the spread."]),
}

QUIZZES = {
    "03.q1": wb.Quiz(
        "A reward was never wrong on ordinary pictures. But once a score lies more than one "
        "standard deviation above the mean, a still higher one means a worse picture. What does "
        "the truth of best-of-n do as n grows?",
        ["it rises, ever more slowly: a higher score stays a better picture",
         "it falls from the start: pressing on a score spoils the pictures",
         "it rises, then falls: the pick moves on to scores that are too high",
         "it stays: choosing among pictures does not change any of them"],
        2, "A small n moves the pick up to where the reward is right. A large n goes on past it.",
        holds=_turning),
    "03.q2": wb.Quiz(
        "Four ways to tell beforehand how much truth a reward will gain. Which order of rank "
        "correlations do you expect?",
        ["exaggerated damage, rated pictures, everyday damage, sham: clear differences tell most",
         "rated pictures, everyday damage, exaggerated damage, sham: own pictures tell most",
         "everyday damage, exaggerated damage, rated pictures, sham: known damage tells most",
         "exaggerated and everyday damage alike, rated pictures, sham: damage is damage"],
        1, "Rated pictures hold the very differences that this sampler makes. Between the two "
        "kinds of damage the mix decides, more than the strength: section 10 takes it apart."),
    "03.q3": wb.Quiz(
        "A similarity reward of spread 0.02 is added to a detector reward of spread 0.5, both "
        "with weight 1. How large is the say of the similarity?",
        ["about 50 %", "about 20 %", "about 4 %"],
        2, "0.02 / (0.02 + 0.5) is 0.038.", holds=_small_say),
}
