"""Single-nodal performance (SNP): what one node, alone, says about every label.

Everything here is a pure function of two arrays of a site with K labels and N nodes, on the device where they are:

- ``W[j, n]``, the probe's weight from node n to output j, and
- ``mu[i, n]``, the probe's pooled value of node n, averaged over the images of label i.

Silence every weight of the probe but node n's, and what is left of output j, averaged over the images of label i, is
``M_n[i, j] = mu[i, n] * W[j, n]`` (row = true label, column = output). The field matrix of a node is an outer product,
and a whole site is measured without another forward pass (Method, section 5).

In the order of reading: `mean_by_label` makes ``mu``, `boolean` thresholds the fields, `clusters` finds the groups of
labels that a node recognises, `measure` turns them into numbers, without writing out a K x K matrix. All is computed in
float64, in which a product of two float32 is exact and sums do not drift.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cctlib.errors import UserError
from cctlib.model import sites

THETA = 0.3  # Method, section 5
CHUNK = 2**22  # entries of the arrays of one chunk of nodes

Nodes = Float[Tensor, "label node"]  # mu or W of a site, a column for each of its nodes


# mu: the mean pooled value of every node for every label ---------------------------------------------------


def mean_by_label(pooled: Float[Tensor, "image node"], labels: Int[Tensor, "image"], num_labels: int) -> Nodes:
    """``mu``, in float32, from sums in float64; `rounded` makes of it what is stored and measured.

    CUDA adds in no fixed order, which moves the last bit of the sums; the float32 mean hides it but for rare roundings
    (``torch.use_deterministic_algorithms(True)`` fixes the order).
    Raises UserError for labels outside 0 .. K-1, a label without images, or values that are not finite.
    """
    if strays := int(((labels < 0) | (labels >= num_labels)).sum()):
        raise UserError(f"{strays} labels are outside 0 .. {num_labels - 1}: give the number of all labels there are")
    counts = labels.bincount(minlength=num_labels)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"no image of label {', '.join(map(str, empty[:5]))}{', ...' if len(empty) > 5 else ''}: "
            f"a field needs images of each of the {num_labels} labels; measure more images"
        )
    sums = torch.zeros(num_labels, pooled.shape[1], dtype=torch.float64, device=pooled.device)
    mu = (sums.index_add_(0, labels, pooled.double()) / counts[:, None]).float()
    if not is_finite(mu):
        raise UserError("pooled values hold NaN or infinity: check the weights, or measure in float32")
    return mu


def shuffled(values: Int[Tensor, "item"], repeats: int, generator: torch.Generator) -> list[Int[Tensor, "item"]]:
    """So many random permutations of `values`, on the device of `values`.

    Of the images' labels, this is the null of claim C2 (Method, section 8), in which every label keeps its number of
    images. Of ``torch.arange(K)``, it is random label orders for `clusters`.
    """
    orders = (torch.randperm(len(values), generator=generator, device=generator.device) for _ in range(repeats))
    return [values[order.to(values.device)] for order in orders]


# From mu and W to fields and Boolean matrices --------------------------------------------------------------


def rounded(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`values` to the nearest float16, as float32: mu and W are rounded once, when they are measured.

    What is stored then measures the same, to the last digit, in half the space. Of the shipped measurements,
    rounding changes 2.4 to 2.5 of 100,000 entries of the Boolean matrices at theta 0.3.
    Values below 6e-8 become 0. Raises UserError for values beyond what float16 holds.
    """
    result = values.half().float()
    if not is_finite(result):
        raise UserError("mu or W holds NaN or values beyond 65,504: check the weights, or scale the site down")
    return result


def is_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite; waits for the device."""
    return bool(values.isfinite().all())


def check_inputs(mu: Tensor, W: Tensor, theta: float) -> None:
    """Raise UserError unless mu and W are finite floats [K >= 2, N >= 1] on one device, and 0 < theta < 1."""
    if mu.ndim != 2 or mu.shape != W.shape or mu.shape[0] < 2 or mu.shape[1] < 1:
        raise UserError(
            f"mu has shape {tuple(mu.shape)} and W {tuple(W.shape)}: both must be [label, node] of one site, "
            "with 2 labels and 1 node at least"
        )
    if not (mu.is_floating_point() and W.is_floating_point()):
        raise UserError(f"mu is {mu.dtype} and W is {W.dtype}: convert both to floating point with .float()")
    if mu.device != W.device:
        raise UserError(f"mu is on {mu.device} and W on {W.device}: move both to one device")
    if not 0 < theta < 1:
        raise UserError(f"theta is {theta}: choose a share of the largest entry, between 0 and 1, exclusive")
    if not (is_finite(mu) and is_finite(W)):
        raise UserError("mu or W holds NaN or infinity: the measurement is broken; measure the site again")


def field(mu: Float[Tensor, "true_label"], W: Float[Tensor, "output"]) -> Float[Tensor, "true_label output"]:
    """``M_n`` of one node, from its columns ``mu[:, n]`` and ``W[:, n]`` (Method, section 5)."""
    return torch.outer(mu, W)


def peaks(mu: Nodes, W: Nodes) -> Float[Tensor, "node"]:
    """The largest entry of every node's field, in float64; a node is silent where it is not positive.

    The largest entry of an outer product is a product of extremes, so that no field needs to be written out.
    """
    ends_mu, ends_W = (torch.stack(array.double().aminmax(dim=0)) for array in (mu, W))
    return (ends_mu[:, None] * ends_W[None, :]).amax(dim=(0, 1))


def divisor(peak: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """What normalises a field: its peak, or infinity for a silent node, whose normalised field is then 0."""
    return torch.where(peak > 0, peak, torch.inf)


def threshold(
    fields: Float[Tensor, "node true_label output"], peak: Float[Tensor, "node"], theta: float
) -> Bool[Tensor, "node true_label output"]:
    """``M / max M > theta``, strictly; all False for a silent node (Method, section 5)."""
    # A division, not theta * peak: 6 / 20 rounds to what the literal 0.3 is, so that a decimal tie is a tie.
    return fields / divisor(peak)[:, None, None] > theta


def blocks(num_nodes: int, size: int, entries: int) -> list[slice]:
    """Slices of nodes that hold at most `entries` entries together, at `size` each; one node at least."""
    step = max(1, entries // max(1, size))
    return [slice(start, min(start + step, num_nodes)) for start in range(0, num_nodes, step)]


def boolean(mu: Nodes, W: Nodes, theta: float = THETA) -> Bool[Tensor, "node true_label output"]:
    """``B_n`` of all nodes of a site: where the normalised field exceeds theta, strictly (Method, section 5).

    A silent node is all False. Raises UserError as `check_inputs`. The result takes N x K x K bytes; `measure` does
    without it.
    """
    check_inputs(mu, W, theta)
    num_labels, num_nodes = mu.shape
    peak, rows, columns = peaks(mu, W), mu.T.double(), W.T.double()
    B = torch.empty(num_nodes, num_labels, num_labels, dtype=torch.bool, device=mu.device)
    for nodes in blocks(num_nodes, num_labels**2, CHUNK):
        B[nodes] = threshold(rows[nodes, :, None] * columns[nodes, None, :], peak[nodes], theta)
    return B


def diagonals(mu: Nodes, W: Nodes, theta: float = THETA) -> Bool[Tensor, "node label"]:
    """``D_n`` of all nodes: the diagonals of `boolean`, without the matrices. Raises UserError as `check_inputs`."""
    check_inputs(mu, W, theta)
    return (mu.double() * W.double() / divisor(peaks(mu, W)) > theta).T.contiguous()


def ones_of_rows(
    rows: Float[Tensor, "node row"], columns: Float[Tensor, "node column"], peak: Float[Tensor, "node"], theta: float
) -> Int[Tensor, "node row"]:
    """Ones in each row of ``threshold(rows x columns)``, counted in K log K for each node, without the matrix.

    For one row the normalised product only grows, or only falls, along the sorted columns, rounding included: so the
    ones are at one end, and bisection with the very expression of `threshold` finds how many there are.
    """
    num_columns = columns.shape[1]
    ascending, scale = columns.sort(dim=1).values, divisor(peak)[:, None]
    fewest = torch.zeros_like(rows, dtype=torch.long)
    most = torch.full_like(fewest, num_columns)
    for _ in range(num_columns.bit_length()):
        middle = (fewest + most + 1) >> 1  # is the entry so far from the better end, the first at 1, a one?
        place = torch.where(rows > 0, num_columns - middle, middle - 1).clamp_(0, num_columns - 1)
        one = rows * ascending.gather(1, place) / scale > theta
        fewest, most = torch.where(one, middle, fewest), torch.where(one, most, middle - 1)
    return fewest


# From Boolean matrices to clusters and their statistics -----------------------------------------------------


def most(counts: Int[Tensor, "node"]) -> int:
    """The largest count, at least 1; the one place where `clusters` waits for the device."""
    return max(1, int(counts.max()))


def clusters(
    B: Bool[Tensor, "node label label"], order: Int[Tensor, "label"] | None = None
) -> Int[Tensor, "node label"]:
    """Index of each label's cluster in each node, in order of opening; -1 for a label off the diagonal.

    The definition (Method, section 5) walks ``D_n`` in label order: the first unassigned label opens a cluster, every
    later unassigned label joins if the block stays all ones in both directions; close; repeat.

    `order`, a permutation of the labels, is the order of the walk: clusters depend on it, ``D_n`` does not.
    Raises UserError when it is no permutation.
    """
    num_labels = B.shape[1]
    labels, inside = walk(B.diagonal(dim1=1, dim2=2), order)
    pairs = labels[:, :, None] * num_labels + labels[:, None, :]
    return first_fit(labels, inside, B.flatten(1).gather(1, pairs.flatten(1)).view_as(pairs), num_labels)


def walk(
    D: Bool[Tensor, "node label"], order: Int[Tensor, "label"] | None
) -> tuple[Int[Tensor, "node step"], Bool[Tensor, "node step"]]:
    """The labels of each D_n in the order of the walk, padded to the longest, and which steps are no padding."""
    in_order = torch.arange(D.shape[1], device=D.device)
    if order is None:
        order = in_order
    elif not torch.equal(order.sort().values, in_order):
        raise UserError(f"order is no permutation of the {len(in_order)} labels 0 .. {len(in_order) - 1}")
    counts = D.sum(1)
    longest = most(counts)
    labels = order[(~D[:, order]).byte().argsort(dim=1, stable=True)[:, :longest]]
    return labels, in_order[:longest] < counts[:, None]


def first_fit(
    labels: Int[Tensor, "node step"],
    inside: Bool[Tensor, "node step"],
    ones: Bool[Tensor, "node step step"],
    num_labels: int,
) -> Int[Tensor, "node label"]:
    """What `clusters` returns, from what `walk` returns and the block of B_n that its labels make.

    A label joins the first cluster that takes it, for whether a cluster does depends only on its members so far. So
    each label is met once, in all nodes at the same time.
    """
    (num_nodes, longest), nodes = labels.shape, torch.arange(len(labels), device=labels.device)
    # together[n, s, t]: the labels of steps s and t fit in one block. Padding fits all, and closes nothing.
    together = ((ones & ones.mT) | ~inside[:, :, None]).byte()

    # takes[n, c, t]: cluster c of node n takes the label of step t. An unopened cluster takes any label, so
    # the first to take it is the one to join or, where none of the opened does, the next to open.
    takes, joined = torch.ones_like(together), list[Tensor]()
    for step in range(longest):
        joined.append(takes[:, : step + 1, step].argmax(1))
        takes[nodes, joined[-1]] &= together[:, step]
    assigned = torch.stack(joined, dim=1).masked_fill(~inside, -1)
    return torch.full((num_nodes, num_labels), -1, device=labels.device).scatter_(1, labels, assigned)


@dataclass(frozen=True)
class SiteStatistics:
    """The SNP of a site: counts of every node, and by `summary` the numbers of the site (Method, section 5).

    A node is silent (empty) when its field's largest entry is not positive. From `measure_heads`, nodes are heads.
    """

    theta: float
    silent: Bool[Tensor, "node"]
    ones: Int[Tensor, "node"]  # |B_n|
    labels: Int[Tensor, "node"]  # |D_n|
    clusters: Int[Tensor, "node"]  # N_c
    signal: Int[Tensor, "node"]  # sum of C^2: the ones inside the blocks of the clusters
    noise: Int[Tensor, "node"]  # the ones outside
    column_noise: Int[Tensor, "node"]  # of these, in columns of D_n: wrong images light up the node's labels
    foreign_noise: Int[Tensor, "node"]  # the rest of them
    assignment: Int[Tensor, "node label"]  # what `clusters` returns
    snr_field: Float[Tensor, ""]  # mean diagonal / mean |off-diagonal| of the summed normalised fields

    def summary(self) -> dict[str, Tensor]:
        """The site's numbers, scalars on its device.

        - ``nodes``, ``silent``: how many there are.
        - ``clusters``, ``labels``, ``noise``, ``column_noise``, ``foreign_noise``: means over the non-empty nodes, and
          with ``_all`` over all nodes. ``cluster_size``: mean over all clusters of the site, pooled.
        - ``snr``: mean(diag A) / mean(off-diag A) of A, the sum of all B_n.
        - ``snr_blocks`` (S/E): the same, counting of the off-diagonal ones only those outside every block of their
          node, over the same K(K-1) places; equal to ``snr`` where all clusters hold one label, larger otherwise.
        - ``snr_node``: mean of signal / noise over the non-empty nodes. A node without noise counts as if it had one
          wrong entry, the least that can be seen: the best nodes stay in, and the mean stays finite.
        - ``snr_field``: that of the summed normalised fields.

        A ratio is infinite where only its denominator is 0, and NaN where both are: of nothing, nothing is said.
        """
        num_labels = self.assignment.shape[1]
        nodes, filled = torch.ones_like(self.ones).sum().double(), (~self.silent).sum().double()
        result = {"nodes": nodes, "silent": nodes - filled}
        for name in ("clusters", "labels", "noise", "column_noise", "foreign_noise"):
            total = getattr(self, name).sum()
            result[name], result[f"{name}_all"] = total / filled, total / nodes
        # The K diagonal places of A hold sum |D_n| ones, the K(K-1) others the rest of sum |B_n|.
        diagonal = self.labels.sum().double()
        result["cluster_size"] = diagonal / self.clusters.sum()
        result["snr"] = (num_labels - 1) * diagonal / (self.ones - self.labels).sum()
        result["snr_blocks"] = (num_labels - 1) * diagonal / self.noise.sum()
        result["snr_node"] = (self.signal / self.noise.clamp(min=1)).sum(dtype=torch.float64) / filled
        return result | {"snr_field": self.snr_field}


def node_statistics(B: Bool[Tensor, "node label label"]) -> dict[str, Tensor]:
    """Counts of every node from its Boolean matrix, by their names in `SiteStatistics`."""
    assignment = clusters(B)
    per_output = B.view(torch.uint8).sum(1, dtype=torch.int32)  # as bytes: half the time of summing booleans
    return counts_of(assignment, per_output.sum(1), (per_output * (assignment >= 0)).sum(1))


def product_statistics(
    rows: Float[Tensor, "node true_label"],
    columns: Float[Tensor, "node output"],
    D: Bool[Tensor, "node label"],
    theta: float,
    order: Int[Tensor, "label"] | None,
) -> dict[str, Tensor]:
    """The same counts of nodes whose fields are products, without their matrices; rows and columns in float64."""
    peak = peaks(rows.T, columns.T)
    labels, inside = walk(D, order)
    own_rows, own_columns = rows.gather(1, labels), columns.gather(1, labels)
    block = threshold(own_rows[:, :, None] * own_columns[:, None, :], peak, theta)
    ones = ones_of_rows(rows, columns, peak, theta).sum(1)
    in_own_columns = (ones_of_rows(own_columns, rows, peak, theta) * inside).sum(1)
    return counts_of(first_fit(labels, inside, block, rows.shape[1]), ones, in_own_columns)


def counts_of(
    assignment: Int[Tensor, "node label"], ones: Int[Tensor, "node"], in_own_columns: Int[Tensor, "node"]
) -> dict[str, Tensor]:
    """Counts of every node from its clusters, its ones, and those of them in columns of D_n."""
    on_diagonal = assignment >= 0
    sizes = torch.zeros_like(assignment)  # C, padded with 0
    sizes.scatter_add_(1, assignment.clamp(min=0), on_diagonal.long())
    signal = sizes.square().sum(1)
    return {
        "silent": ones == 0,
        "ones": ones,
        "labels": on_diagonal.sum(1),
        "clusters": (sizes > 0).sum(1),
        "signal": signal,
        "noise": ones - signal,
        "column_noise": in_own_columns - signal,
        "foreign_noise": ones - in_own_columns,
        "assignment": assignment,
    }


def field_ratio(rows: Nodes, columns: Nodes) -> Float[Tensor, ""]:
    """Mean diagonal over mean absolute off-diagonal of the summed fields ``rows @ columns.T``, a block at a time.

    Infinite or NaN where the latter is 0.
    """
    off_diagonal = rows.new_zeros(())
    for part in blocks(len(rows), len(rows), CHUNK):
        total = rows[part] @ columns.T
        total.diagonal(part.start).zero_()
        off_diagonal += total.abs_().sum()
    return (len(rows) - 1) * (rows * columns).sum() / off_diagonal


def measure(mu: Nodes, W: Nodes, theta: float = THETA, order: Int[Tensor, "label"] | None = None) -> SiteStatistics:
    """SNP of a site (Method, section 5), on the device of mu and W; `order` as in `clusters`. For units with positions
    see `measure_maps`.

    Raises UserError for shapes, values or a theta that make no sense (`check_inputs`).
    """
    D = diagonals(mu, W, theta)
    num_labels, num_nodes = mu.shape
    rows, columns = mu.T.double().contiguous(), W.T.double().contiguous()
    longest = most(D.sum(1))
    chunks = [
        product_statistics(rows[nodes], columns[nodes], D[nodes], theta, order)
        for nodes in blocks(num_nodes, max(num_labels, longest**2), CHUNK)
    ]
    return joined(chunks, theta, field_ratio(mu.double() / divisor(peaks(mu, W)), W.double()))


def measure_heads(mu: Nodes, W: Nodes, heads: int) -> SiteStatistics:
    """Whole-head performance (Method, section 5, SHP): the same statistics, of each head's summed fields.

    Heads own nodes in equal runs: of 256 nodes and 4 heads, head 0 has 0 .. 63. So a head is measured as a filter is,
    with a position for each of its nodes. Raises UserError when the runs are uneven, and as `measure`.
    """
    if heads < 1 or mu.shape[1] % heads:
        raise UserError(f"{mu.shape[1]} nodes do not divide into {heads} heads: give the number of heads of the site")
    return measure_maps(*(array.unflatten(1, (heads, -1)).mT for array in (mu, W)))


def measure_maps(mu: Tensor, W: Tensor, theta: float = THETA) -> SiteStatistics:
    """SNP of nodes that have a value at every position, as filters have: ``M_n[i, j] = sum_s W[j, s, n] mu[i, s, n]``.

    mu, W: [label, position, node]; with one position this is `measure`. Raises UserError for other shapes, and as
    `check_inputs`.
    """
    if mu.ndim != 3 or mu.shape != W.shape:
        raise UserError(f"mu {tuple(mu.shape)} and W {tuple(W.shape)}: maps are both [label, position, node]")
    check_inputs(mu.flatten(1), W.flatten(1), theta)
    rows, columns = (array.permute(2, 0, 1).double() for array in (mu, W))
    num_labels, positions, num_nodes = mu.shape
    chunks, total = [], rows.new_zeros(num_labels, num_labels)
    for nodes in blocks(num_nodes, num_labels * max(num_labels, positions), CHUNK):
        M = rows[nodes] @ columns[nodes].mT
        peak = M.amax(dim=(1, 2))
        chunks.append(node_statistics(threshold(M, peak, theta)))
        total += (M / divisor(peak)[:, None, None]).sum(0)
    off_diagonal = total.abs().sum() - total.diagonal().abs().sum()
    return joined(chunks, theta, (num_labels - 1) * total.trace() / off_diagonal)


def joined(chunks: list[dict[str, Tensor]], theta: float, ratio: Float[Tensor, ""]) -> SiteStatistics:
    """The statistics of a site from the counts of each chunk of its nodes and its ratio of fields."""
    counts = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return SiteStatistics(theta=theta, snr_field=ratio, **counts)


def site_row(site: str, statistics: SiteStatistics, **also: object) -> dict[str, object]:
    """One row of a table: the site's name, encoder and kind, the threshold, its summary, and what is told `also`."""
    encoder, kind = sites.parse(site)
    numbers = {name: value.item() for name, value in statistics.summary().items()}
    return {"site": site, "encoder": encoder, "kind": kind, "theta": statistics.theta} | numbers | also
