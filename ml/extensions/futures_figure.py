"""Several futures of one past side by side."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ml.reconstruction import Reconstruction


def futures_figure(rows: Sequence[Reconstruction], *, titles: Sequence[str] = (), heading: str = "") -> Figure:
    """Of each past a sheet: f1 and its true futures by their gaps, what is visible of them, and the predictions."""
    columns = 1 + max(len(row.frames) for row in rows)
    height, width = rows[0].frames.shape[-2:]
    figure = Figure(
        figsize=(max(6.4, 1.4 * columns + 0.4), (4.2 * height / width + 0.4) * len(rows) + 0.8), layout="constrained"
    )
    for r, (row, part) in enumerate(zip(rows, figure.subfigures(len(rows), 1, squeeze=False)[:, 0], strict=True)):
        assert row.past is not None
        name = titles[r].partition("\n")[0] if titles else ""
        part.suptitle(": ".join(filter(None, (name, f"loss {row.loss:.3f}"))), fontsize=9)
        grid = part.subplots(3, columns, squeeze=False)
        sheets = {"original": row.frames, "as it is seen": row.masked, "predicted": row.pasted}
        for axes, (name, pictures) in zip(grid, sheets.items(), strict=True):
            axes[1].set_ylabel(name, fontsize=8)
            for axis, picture in zip(axes[1:], pictures, strict=False):
                axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        grid[0][0].imshow(row.past.permute(1, 2, 0).numpy(), interpolation="nearest")
        for axis in grid.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        grid[0][0].set_title("f1", fontsize=8)
        for k, axis in enumerate(grid[0][1 : 1 + len(row.frames)]):
            axis.set_title(f"+{row.times[1 + k] - row.times[0]:.2f} s" if row.times else f"future {k + 1}", fontsize=8)
    figure.suptitle(heading, fontsize=11)
    figure.supxlabel("; ".join(dict.fromkeys(row.caption for row in rows)), fontsize=8, color="0.35")
    return figure
