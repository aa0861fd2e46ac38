"""What the kept checkpoints of several runs predict for the same pairs, as pictures for a page.

A checkpoint is read and drawn once, however often the page is written.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

from common.errors import InputError
from ml.report import RunFiles, spread
from pages.page import data_uri

BYTES = 4 * 2**20  # of all pictures as they stand in the page
PAIRS = 4


class Pictures:
    """Reconstructions of the first pairs of a file (`samples.pickle`); without a file there are none."""

    def __init__(self, samples: Path | None) -> None:
        from ml.samples import load_samples

        self.samples = load_samples(samples) if samples else None
        self._drawn: dict[tuple[Path, float], dict[str, Any] | None] = {}

    def of(self, runs: list[RunFiles]) -> dict[str, Any] | None:
        """`pairs` (name, gap in seconds, past, future), `runs` (ratio, masked, epochs of pasted pictures and losses),
        `caption`; None where no run has a checkpoint of a model of pairs.
        """
        with_some = [run for run in runs if run.checkpoints()] if self.samples else []
        found: dict[str, Any] = {}
        pairs: list[dict[str, Any]] = []
        caption = ""
        for run in with_some:
            files = list(run.checkpoints().items())
            last = self._draw(files[-1][1])
            if last is None:
                continue
            size = sum(map(len, last["pasted"]))
            entries = []
            for epoch, path in spread(files, max(2, BYTES // (size * len(with_some)) - 1)):
                drawn = self._draw(path)
                if drawn:
                    entries.append(dict(epoch=epoch, pasted=drawn["pasted"], loss=drawn["loss"]))
            found[run.name] = dict(ratio=last["ratio"], masked=last["masked"], epochs=entries)
            pairs, caption = last["pairs"], last["caption"]
        return dict(pairs=pairs, runs=found, caption=caption) if found else None

    def _draw(self, path: Path) -> dict[str, Any] | None:
        """What a checkpoint makes of the pairs; None if it cannot be read, or is a model of clips."""
        try:
            key = (path, path.stat().st_mtime)
        except OSError:
            return None
        if key not in self._drawn:
            try:
                self._drawn[key] = self._predict(path)
            except InputError:
                self._drawn[key] = None
        return self._drawn[key]

    def _predict(self, path: Path) -> dict[str, Any] | None:
        from ml.checkpoints import load_model
        from ml.reconstruction import reconstruct
        from ml.samples import pairs_for

        assert self.samples is not None
        model, _ = load_model(path)
        pairs, masked, pasted, losses, caption = [], [], [], [], ""
        for sample in pairs_for(model.sample_shape, self.samples)[:PAIRS]:
            result = reconstruct(sample, model)
            gap = float(sample["time"][1] - sample["time"][0])
            pairs.append(dict(name=sample["name"], gap=gap, past=jpeg(result.past), future=jpeg(result.frames[0])))
            masked.append(jpeg(result.masked[0]))
            pasted.append(jpeg(result.pasted[0]))
            losses.append(result.loss)
            caption = result.caption
        return dict(
            pairs=pairs, masked=masked, pasted=pasted, loss=losses, ratio=model.mask_ratio,
            caption=f"{caption[0].upper()}{caption[1:]}; visible patches are pasted in. The same masks in all epochs.",
        )  # fmt: skip


def jpeg(pixels: Any) -> str:
    """Pixels [3, H, W] in [0, 1] as a picture inside a page."""
    from PIL import Image

    content = BytesIO()
    array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(content, "JPEG", quality=85)
    return data_uri(content.getvalue())
