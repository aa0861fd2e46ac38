"""What the notebook calls: train a model on pairs, look at it, and look at what a checkpoint has learnt.

Legend: B pairs in a batch, N patches, H W pixels.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from mae.files import InputError
from ml.checkpoints import find_checkpoint, load_model, load_run, save_checkpoint, save_config
from ml.logs import EpochLoss, append_line, cut_after, mean_over_pairs, read_losses
from ml.optimisation import make_optimizer, make_scheduler
from ml.reconstruction import Statistics, reconstruct
from ml.SiamMAE import SiamMAE
from ml.tracking import TrackerKind, make_tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Device = torch.device | str | None


def best_device(device: Device = None) -> torch.device:
    """The device that was asked for, or the best there is: CUDA, Apple's, or the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def leave_cores(workers: int) -> None:
    """Let torch compute with the cores that the loader's processes leave, so that neither waits for the other."""
    torch.set_num_threads(max(1, torch.get_num_threads() - workers))


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 for the matrix products on GPUs that have it, float32 elsewhere; weights and loss stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and torch.cuda.is_bf16_supported())


def train_one_epoch(
    data_loader: Iterable[dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    device: Device,
    model: SiamMAE,
    *,
    on_step: Callable[[Tensor, dict[str, Any]], None] | None = None,
) -> list[float]:
    """Go once through the loader; the losses of all steps. The mask of each pair follows from its `seed` in the batch,
    or where there is none, from torch's generator.

    The scheduler is stepped after each update. `on_step(loss, batch)` is called after each update.
    """
    device = best_device(device)
    model.train()
    losses = []
    for batch in data_loader:
        video = batch["video"].to(device, non_blocking=True)
        with precision(device):
            loss, _, _ = model(video, seeds=_seeds(batch, device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        if on_step:
            on_step(losses[-1], batch)
    return torch.stack(losses).tolist() if losses else []


def train(
    model: SiamMAE,
    data_loader: Any,
    epochs: int = 60,
    prefix: str = "",
    num_epochs_per_save: int = 10,
    device: Device = None,
    *,
    base_lr: float = 1.5e-4,
    warmup_epochs: float | None = None,
    weight_decay: float = 0.05,
    resume: str | Path | None = None,
    root: str | Path = ".",
    config: dict[str, Any] | None = None,
    tracker: TrackerKind = "none",
    progress: bool = True,
) -> str:
    """Train, and return the run's name, `<prefix><date>_<time>`.

    AdamW at base_lr × pairs in a step / 256, up in a straight line over `warmup_epochs` (default: a tenth of the
    epochs, 40 at most), then down along half a cosine. After each epoch a line goes to `losses/<run>.txt` and the state
    to `checkpoints/<run>/last.pt`; every `num_epochs_per_save` epochs, and at the end, `<epoch>.pt` and a figure of the
    first pair that was seen are kept as well. resume: a run (or a checkpoint) to go on with, exactly as if it had never
    stopped; an interruption loses at most the running epoch. root: the folder that holds `losses/` and `checkpoints/`.
    config: plain values that are to be kept with the weights. tracker: `wandb` reports there as well.
    """
    device, root = best_device(device), Path(root)
    model.to(device)
    if len(data_loader) == 0:
        raise InputError("the loader has no batch; are there fewer pairs than a batch holds?")
    warmup = min(40, 0.1 * epochs) if warmup_epochs is None else warmup_epochs
    settings = dict(
        epochs=epochs, steps_per_epoch=len(data_loader), batch_size=data_loader.batch_size,
        base_lr=base_lr, warmup_epochs=warmup, weight_decay=weight_decay,
    )  # fmt: skip
    optimizer = make_optimizer(model, base_lr * data_loader.batch_size / 256, weight_decay)
    scheduler = make_scheduler(optimizer, round(warmup * len(data_loader)), epochs * len(data_loader))
    first, run = 1, ""
    if resume is None:
        run = _new_run(prefix, root)
        save_config(root / "checkpoints" / run / "config.json", dict(model=model.config, train=settings, run=config))
    else:
        run, first = _resume(find_checkpoint(resume, root), settings, model, optimizer, scheduler)
        cut_after(root / "losses" / f"{run}.txt", first - 1)
    folder, log = root / "checkpoints" / run, root / "losses" / f"{run}.txt"

    reporter = make_tracker(tracker, run, dict(model=model.config, train=settings, run=config), root)
    sample: dict[str, Any] = {}
    pairs: list[int] = []
    bar = tqdm(
        total=epochs * len(data_loader) * data_loader.batch_size,
        initial=(first - 1) * len(data_loader) * data_loader.batch_size,
        unit="pair", desc=run, disable=not progress, mininterval=1, dynamic_ncols=True, smoothing=0.05,
    )  # fmt: skip
    shown = time.monotonic()

    def on_step(loss: Tensor, batch: dict[str, Any]) -> None:
        nonlocal shown
        if not sample:
            sample.update(video=batch["video"][0], time=batch["time"][0], seed=batch["seed"][0])
        pairs.append(len(batch["video"]))
        bar.update(len(batch["video"]))
        if device.type == "cpu" or time.monotonic() - shown > 1:  # reading a loss makes a GPU wait, so seldom there
            shown = time.monotonic()
            value = loss.item()
            bar.set_postfix(epoch=f"{epoch}/{epochs}", loss=f"{value:.4f}", refresh=False)
            _must_be_finite(value, epoch, len(pairs), scheduler.get_last_lr()[0], run, batch["path"])

    epoch = first
    try:
        for epoch in range(first, epochs + 1):
            pairs.clear()
            if hasattr(data_loader, "set_epoch"):
                data_loader.set_epoch(epoch)
            losses = train_one_epoch(data_loader, optimizer, scheduler, device, model, on_step=on_step)
            line = EpochLoss(epoch, mean_over_pairs(losses, pairs), losses)
            _must_be_finite(line.mean, epoch, len(pairs), scheduler.get_last_lr()[0], run, [])
            append_line(log, line)
            pictures: dict[str, Path] = {}
            checkpoint = dict(
                model=model.state_dict(), optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict(),
                epoch=epoch, step=epoch * len(data_loader), losses=losses, run=run, settings=settings,
                config=model.config, run_config=config,
            )  # fmt: skip
            save_checkpoint(folder / "last.pt", checkpoint)
            if epoch % num_epochs_per_save == 0 or epoch == epochs:
                save_checkpoint(folder / f"{epoch}.pt", checkpoint)
                pictures = _plot_progress(model, sample, device, folder, log, epoch)
            reporter.log(epoch, {"loss": line.mean, "lr": float(scheduler.get_last_lr()[0])}, pictures)
    except KeyboardInterrupt:
        kept = f"{epoch - 1} epochs are kept; go on with resume={run!r}" if epoch > 1 else "no epoch was finished"
        print(f"\nstopped in epoch {epoch} of {epochs}: {kept}", file=sys.stderr)
        raise
    finally:
        bar.close()
        reporter.close()
    return run


@torch.no_grad()
def evaluate(model: SiamMAE, data_loader: Iterable[dict[str, Any]], device: Device = None) -> EpochLoss:
    """The mean loss over a loader without gradients. Masks follow from the pairs' seeds, or from their place in the
    order where they have none, so they repeat exactly."""
    device = best_device(device)
    model.to(device).eval()
    losses: list[float] = []
    pairs: list[int] = []
    for batch in data_loader:
        video = batch["video"].to(device)
        seeds = _seeds(batch, device)
        if seeds is None:
            seeds = torch.arange(sum(pairs), sum(pairs) + len(video), device=device)
        with precision(device):
            losses.append(model(video, seeds=seeds)[0].item())
        pairs.append(len(video))
    if not losses:
        raise InputError("there is nothing to evaluate: the loader has no batch")
    return EpochLoss(None, mean_over_pairs(losses, pairs), losses)


def plot_sample(
    sample: dict[str, Any] | Tensor, model: SiamMAE, device: Device = None, *, statistics: Statistics = "past"
) -> "Figure":
    """Draw f1, f2, the visible part of f2, the prediction with visible patches pasted in, and the raw prediction.

    sample: a dict with `video` ([2, 3, H, W], or more pairs, of which the first is drawn) and perhaps `time` and
    `seed`, or the video alone. The mask follows from `seed` (0 if there is none). The caption says how normalised
    predictions became colours: with the statistics of f1 (`past`), or of the hidden patches themselves (`target`).
    """
    from ml.figures import reconstruction_figure

    sample = sample if isinstance(sample, dict) else {"video": sample}
    video, times, seed = (torch.as_tensor(sample[key]) if key in sample else None for key in ("video", "time", "seed"))
    assert video is not None
    video = video.reshape(-1, *video.shape[-4:])[0]
    times = None if times is None else times.reshape(-1, 2)[0]
    number = 0 if seed is None else int(seed.flatten()[0])
    model.to(best_device(device))
    row = reconstruct(model, video, time=times, seed=number, statistics=statistics)
    return reconstruction_figure([row], heading=f"{model.mask_ratio:.0%} of f2 hidden")


def plot_results_from_checkpoint(
    checkpoint_name: str | Path,
    data_loader: Iterable[dict[str, Any]],
    device: Device = None,
    samples_path: str | Path = "samples.pickle",
    *,
    root: str | Path = ".",
    statistics: Statistics = "past",
) -> "list[Figure]":
    """Evaluate a checkpoint on a loader and on the samples of a file, and return its figures.

    The configuration comes with the weights. The mean loss over the loader goes to `test_losses/<run>.txt` and the
    figures, one of the samples and one of the training losses if there is a log, to `test_losses/<run>_<epoch>*.png`.
    """
    from ml.figures import loss_figure, save_figure
    from ml.samples import load_samples

    root, device = Path(root), best_device(device)
    path = find_checkpoint(checkpoint_name, root)
    model, checkpoint = load_model(path, device)
    load_samples(samples_path)  # before the long part: it may not be there
    run, epoch = checkpoint.get("run") or path.parent.name, checkpoint["epoch"]
    result = evaluate(model, data_loader, device)
    append_line(root / "test_losses" / f"{run}.txt", EpochLoss(epoch, result.mean, result.losses))
    heading = f"{run}, epoch {epoch}: {model.mask_ratio:.0%} of f2 hidden, test loss {result.mean:.3f}"
    figures = [samples_figure(model, samples_path, heading=heading, statistics=statistics)]
    save_figure(figures[0], root / "test_losses" / f"{run}_{epoch}.png")
    log = root / "losses" / f"{run}.txt"
    if log.exists():
        figures.append(loss_figure({run: read_losses(log)}))
        save_figure(figures[1], root / "test_losses" / f"{run}_{epoch}_losses.png")
    return figures


def _seeds(batch: dict[str, Any], device: torch.device) -> Tensor | None:
    return batch["seed"].to(device) if "seed" in batch else None


def samples_figure(
    model: SiamMAE, samples_path: str | Path, *, heading: str = "", statistics: Statistics = "past"
) -> "Figure":
    """What a model makes of the pairs of a file (`siammae samples`), one row each, with masks that stay the same."""
    from ml.figures import reconstruction_figure
    from ml.samples import load_samples

    samples = load_samples(samples_path)
    video = _resized(torch.from_numpy(samples["video"]), model)
    rows = [
        reconstruct(model, pair, time=times, seed=k, statistics=statistics)
        for k, (pair, times) in enumerate(zip(video, samples["time"], strict=True))
    ]
    return reconstruction_figure(rows, titles=samples["name"], heading=heading)


def _resized(video: Tensor, model: SiamMAE) -> Tensor:
    """Pairs [S, 2, 3, H, W] at the size that the model was trained with."""
    size = tuple(side * model.patch_size for side in model.grid)
    if tuple(video.shape[-2:]) == size:
        return video
    small = torch.nn.functional.interpolate(video.flatten(0, 1).float(), size, mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).unflatten(0, video.shape[:2])


def _new_run(prefix: str, root: Path) -> str:
    """A name that no run has yet; its folder is made at once, so that two runs of one second do not meet."""
    if "/" in prefix or "\\" in prefix or ":" in prefix:
        raise InputError(f"the prefix {prefix!r} becomes part of a file name; leave out '/', '\\' and ':'")
    while True:
        run = f"{prefix}{datetime.now():%Y-%m-%d_%H-%M-%S}"
        folder = root / "checkpoints" / run
        if not (root / "losses" / f"{run}.txt").exists():
            try:
                folder.mkdir(parents=True)
                return run
            except FileExistsError:
                pass
        time.sleep(0.2)


def _resume(path: Path, settings: dict[str, Any], model: SiamMAE, optimizer: Any, scheduler: Any) -> tuple[str, int]:
    """Put everything back as it was after the last finished epoch; the run and the epoch to go on with."""
    checkpoint = load_run(path)
    for what, now, then in (
        ("model", model.config, checkpoint["config"]),
        ("training", settings, checkpoint.get("settings", {})),
    ):
        differing = [key for key in now if now[key] != then.get(key)]
        if differing:
            said = "; ".join(f"{key} was {then.get(key)!r} and is now {now[key]!r}" for key in differing)
            raise InputError(f"{path} cannot be resumed, its {what} differs: {said}")
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    return checkpoint["run"], checkpoint["epoch"] + 1


def _must_be_finite(loss: float, epoch: int, step: int, lr: Any, run: str, paths: list[str]) -> None:
    if not math.isfinite(loss):
        files = f", with {', '.join(dict.fromkeys(paths))} in the batch" if paths else ""
        raise InputError(
            f"the loss is {loss} at step {step} of epoch {epoch} (learning rate {lr:.3g}){files}; the checkpoints of "
            f"earlier epochs are kept in checkpoints/{run}: lower base_lr or lengthen the warm-up, and resume"
        )


def _plot_progress(
    model: SiamMAE, sample: dict[str, Any], device: torch.device, folder: Path, log: Path, epoch: int
) -> dict[str, Path]:
    """A pair as the model sees it now, and the loss so far: into files, and into a running notebook."""
    from ml.figures import loss_figure, save_figure, show

    figure = plot_sample(sample, model, device)
    show(figure)
    curve = save_figure(loss_figure({log.stem: read_losses(log)}), log.with_suffix(".png"))
    return {"reconstruction": save_figure(figure, folder / f"{epoch}.png"), "losses": curve}
