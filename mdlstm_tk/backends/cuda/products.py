"""Products of a sweep with initial states on a GPU."""

def pre_activations(inputs: SweepInputs, output: Tensor, rows: SweepRows) -> Tensor:
    """W x + Σ_d U_d h_d + b, (dirs, rows, G·n), once h of the whole grid is known."""
    a = project_input(inputs, rows)
    if inputs.weight_hh is not None:
        a = a.add_(multiply(gather_hidden(output, rows), inputs.weight_hh.transpose(2, 3).flatten(1, 2)))
    return a if inputs.bias is None else a.add_(inputs.bias[:, None])


def face_products(inputs: SweepInputs, h: Tensor, rows: Tensor, a: Tensor) -> Tensor:
    """`a` with U_d h_d added at the positions where the h_d of a face enters.

    Args:
        inputs: of the sweep.
        h: (N, F, dirs, n) on the faces.
        rows: (dirs, F, N) where each line enters, see `faces.end_rows`.
        a: (dirs, all rows, G·n), which is not changed.
    """
    if inputs.weight_hh is None or a.shape[1] == 0:
        return a
    for d, (h_d, rows_d) in enumerate(_of_axes(inputs, h, rows)):
        product = multiply(h_d, inputs.weight_hh[:, d].transpose(1, 2)).masked_fill(
            rows_d[..., None] < 0, 0
        )
        # The rows of one axis are all different, but for those that are −1, where nothing is added.
        a = a.index_put((_direction(rows_d), rows_d.clamp(min=0)), product, accumulate=True)
    return a


def face_gradients(
    inputs: SweepInputs, da: Tensor, h: Tensor, rows: Tensor, dw_hh: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The gradient of h on the faces (dirs, F·N, n), and `dw_hh` with what the faces add to it.

    Args:
        inputs, h, rows: as for `face_products`.
        da: (dirs, all rows, G·n) gradient of the pre-activations, in x's dtype.
        dw_hh: (dirs, D, G·n, n), or None if the cell is not recurrent.
    """
    if inputs.weight_hh is None or dw_hh is None:
        return torch.zeros_like(by_direction(h)), dw_hh
    dh, dw = [], []
    for d, (h_d, rows_d) in enumerate(_of_axes(inputs, h, rows)):
        da_d = take_rows(da, rows_d)  # (dirs, F_d·N, G·n)
        dh.append(multiply(da_d, inputs.weight_hh[:, d]))
        dw.append(multiply_transposed(da_d, h_d))
    return torch.cat(dh, dim=1).to(h.dtype), dw_hh + torch.stack(dw, dim=1).to(dw_hh.dtype)


def _of_axes(inputs: SweepInputs, h: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each axis (dirs, F_d·N, n) of h on its face, and the rows (dirs, F_d·N) where they enter."""
    counts, batch = line_counts(inputs.grid), inputs.x.shape[0]
    parts = by_direction(h).split([count * batch for count in counts], dim=1)
    return list(zip(parts, rows.flatten(1).split([count * batch for count in counts], dim=1), strict=True))


def gather_hidden(output: Tensor, rows: SweepRows) -> Tensor:
    """(h_1 | … | h_D) of the predecessors of every row, (dirs, rows, D·n)."""
    h = _with_zeros(to_visiting_order(output, rows))
    return torch.cat([h[:, index] for index in rows.tables.predecessors], dim=-1).flatten(1, 2)


