"""siammae test CHECKPOINT --data VIDEOS"""

from pathlib import Path
from typing import Annotated

import tyro


def main(
    checkpoint: Annotated[str, tyro.conf.Positional],
    data: Path,
    samples: Path = Path("samples.pickle"),
    root: Path = Path(),
    device: str | None = None,
    pairs_per_video: int = 4,
    workers: int = 1,
) -> None:
    """The loss of a checkpoint on fixed pairs or clips of held-out videos, with fixed masks, and its reconstructions.

    Args:
        checkpoint: a run, <run>/<epoch>, or a file
        data: folder of held-out videos
        samples: frame pairs for the figure, from `siammae samples`; a model of clips is drawn on held-out ones
        root: folder that holds checkpoints/, losses/ and test_losses/
        device: cuda, mps, cpu; default: the best there is
        pairs_per_video: pairs (or clips) from each video, always the same ones
        workers: processes that decode
    """
    from cli.wiring import fixed_dataset, fixed_loader
    from ml.checkpoints import find_checkpoint, load_run
    from ml.logs import read_losses
    from ml.utils import config_of, plot_results_from_checkpoint

    path = find_checkpoint(checkpoint, root)
    saved = load_run(path)
    config, run = config_of(saved), saved.get("run") or path.parent.name
    dataset = fixed_dataset(config, data, pairs_per_video)
    plot_results_from_checkpoint(path, fixed_loader(config, dataset, workers=workers), device, samples, root=root)
    log = root / "test_losses" / f"{run}.txt"
    pairs = f"{len(dataset)} {'clips' if config.of_clips else 'pairs'} of {len(dataset.paths)} videos"
    print(f"{run}, epoch {saved['epoch']}: loss {read_losses(log)[-1].mean:.4f} over {pairs}; see {log}")
