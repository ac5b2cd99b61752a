"""Exercises and questions of notebook 04: references, known mistakes, hints, answers."""

import torch

from rlgenkit import workbook as wb

# --- 04.1: whole groups, dealt out


def shares(groups, processes):
    """Rows of each process, whole groups dealt out in turn: Long[B], int -> list of Long."""
    names = groups.unique()
    return [torch.isin(groups, names[k::processes]).nonzero()[:, 0] for k in range(processes)]


def _rows_in_turn(groups, processes):
    return [torch.arange(len(groups))[k::processes] for k in range(processes)]


def _equal_blocks(groups, processes):
    return list(torch.arange(len(groups)).tensor_split(processes))


def _names_for_rows(groups, processes):
    return [groups.unique()[k::processes] for k in range(processes)]


def _groups(generator):
    """Five groups of two to four samples that do not stand side by side, and two processes."""
    sizes = torch.randint(2, 5, (5,), generator=generator)
    groups = torch.arange(5).repeat_interleave(sizes)
    return [groups[torch.randperm(len(groups), generator=generator)], 2]


# --- 04.2: the divisor of all


def average_over_processes(sums, counts):
    """The mean over all terms of all processes: [K], [K] -> scalar."""
    return sums.sum() / counts.sum()


def _mean_of_means(sums, counts):
    return (sums / counts.clamp(min=1)).mean()


def _by_processes(sums, counts):
    return sums.mean() / counts.sum()


def _own_divisor(sums, counts):
    return (sums / counts.clamp(min=1)).sum()


def _sums(generator):
    """Three processes, one without a term."""
    counts = torch.cat([torch.randint(1, 9, (2,), generator=generator), torch.zeros(1)])
    return [torch.randn(3, generator=generator) * (counts > 0), counts]


# --- 04.3: one message


def in_one_message(gradients, reduce):
    """Each gradient summed over the processes by one call of reduce: list, [P] -> [P]; list."""
    total = reduce(torch.cat([g.flatten() for g in gradients]))
    parts = total.split([g.numel() for g in gradients])
    return [part.view_as(g) for part, g in zip(parts, gradients)]


def _flat_parts(gradients, reduce):
    total = reduce(torch.cat([g.flatten() for g in gradients]))
    return list(total.split([g.numel() for g in gradients]))


def _a_message_each(gradients, reduce):
    return [reduce(g.flatten()).view_as(g) for g in gradients]


def _nothing_sent(gradients, reduce):
    return [g.clone() for g in gradients]


def _summed_in_place(vector):
    """Stands for a sum over processes that depends on the place in the message."""
    return 2 * vector + torch.arange(len(vector))


def _gradients(generator):
    """Gradients of three shapes and a reduction that tells where in the message a number stood."""
    shapes = ((2, 3), (4,), (3, 1, 2))
    return [[torch.randn(s, generator=generator) for s in shapes], _summed_in_place]


# --- 04.4: what makes the mean of DDP right


def factor(count, counts):
    """What a process multiplies its mean loss by, so that the plain mean is right: int, [K]."""
    return len(counts) * count / counts.sum()


def _share_only(count, counts):
    return count / counts.sum()


def _processes_only(count, counts):
    return len(counts) / counts.sum()


def _none(count, counts):
    return torch.ones(())


def _shares(generator):
    """Terms of four processes, and those of the second."""
    counts = torch.randint(1, 20, (4,), generator=generator).float()
    return [counts[1], counts]


# --- 04.5: bytes of a training


def state_bytes(frozen, trained, frozen_width):
    """Weights, gradients and Adam's two moments in bytes; what is trained is in float32."""
    return torch.tensor([frozen * frozen_width + trained * 4, trained * 4, trained * 8])


def _moments_for_all(frozen, trained, frozen_width):
    return torch.tensor([frozen * frozen_width + trained * 4, trained * 4, (frozen + trained) * 8])


def _one_moment(frozen, trained, frozen_width):
    return torch.tensor([frozen * frozen_width + trained * 4, trained * 4, trained * 4])


def _adapter_forgotten(frozen, trained, frozen_width):
    return torch.tensor([frozen * frozen_width, trained * 4, trained * 8])


def _network(generator):
    """A frozen network in bfloat16 and an adapter."""
    frozen = int(torch.randint(1000, 9000, (), generator=generator))
    return [frozen, int(torch.randint(10, 90, (), generator=generator)), 2]


# --- questions


def _half(seed):
    """One group over two processes: the mean with an idle process is half of the gradient."""
    gradient = torch.randn(5, generator=torch.Generator().manual_seed(seed))
    mean = torch.stack([gradient, torch.zeros(5)]).mean(0)
    return torch.allclose(mean, gradient / 2)


EXERCISES = {
    "04.1": wb.Exercise(
        reference=shares, inputs=_groups, minutes=8, difficulty=2,
        wrong={
            "samples of a group must stay together: deal out groups, not rows": _rows_in_turn,
            "equal numbers of rows cut a group in two": _equal_blocks,
            "return the rows of the groups, not their names": _names_for_rows,
        },
        hints=["Process k gets the groups `groups.unique()[k::processes]`.",
               "`torch.isin(groups, some).nonzero()[:, 0]` are the rows of some groups."]),
    "04.2": wb.Exercise(
        reference=average_over_processes, inputs=_sums, minutes=3, difficulty=1,
        wrong={
            "a process with few terms must not count like one with many": _mean_of_means,
            "the sum of the sums, not their mean: the divisor already holds all": _by_processes,
            "one divisor for all, gathered from all processes": _own_divisor,
        },
        hints=["Add up what is divided, add up what divides, divide once."]),
    "04.3": wb.Exercise(
        reference=in_one_message, inputs=_gradients, minutes=8, difficulty=3,
        wrong={
            "give every part the shape of its gradient": _flat_parts,
            "one call of `reduce` for all gradients together": _a_message_each,
            "what is returned must have gone through `reduce`": _nothing_sent,
        },
        hints=["`torch.cat([g.flatten() for g in gradients])` is the message.",
               "`total.split([...])` cuts it at the numbers of elements; then `view_as`."]),
    "04.4": wb.Exercise(
        reference=factor, inputs=_shares, minutes=8, difficulty=3,
        wrong={
            "the mean divides by the number of processes: multiply by it": _share_only,
            "weigh by the number of this process's own terms": _processes_only,
            "without a factor unequal shares count alike": _none,
        },
        hints=["Write the right mean as a mean over K processes of something."]),
    "04.5": wb.Exercise(
        reference=state_bytes, inputs=_network, minutes=5, difficulty=2,
        wrong={
            "Adam keeps moments only of what is trained": _moments_for_all,
            "Adam keeps two moments, the mean and the mean square": _one_moment,
            "the adapter is weights, too, in float32": _adapter_forgotten,
        },
        hints=["float32 has 4 bytes, bfloat16 has 2.",
               "Gradients and moments exist for trained numbers only."]),
}  # fmt: skip

QUIZZES = {
    "04.q1": wb.Quiz(
        "One group is left for two processes; the second has no row. Each averages over its own "
        "rows, and the gradients are averaged over the two. What is the gradient?",
        ["right: the empty process adds nothing", "half of the right one", "twice the right one"],
        1, "The empty process adds zeros, but the mean still divides by two.", holds=_half),
    "04.q2": wb.Quiz(
        "A network is trained with a LoRA. What takes most of the memory at ten steps in one graph?",
        ["Adam's moments", "the weights", "what is kept for the backward pass"], 2,
        "The adapter's moments are small; every step of every row keeps its activations."),
}  # fmt: skip
