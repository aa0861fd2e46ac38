"""siammae export CHECKPOINT [--to timm|hf|public|onnx|jax] --out PLACE"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from common.errors import InputError


def main(
    checkpoint: Annotated[str, tyro.conf.Positional],
    out: Path,
    to: Literal["file", "timm", "hf", "public", "onnx", "jax"] = "file",
    results: tuple[Path, ...] = (),
    licence: str = "other",
    root: Path = Path(),
) -> None:
    """Write a checkpoint's weights for other programs: a folder with a model card, or one file.

    All but onnx are read back here, by `--source` and `--weights`, with the same weights to the bit.

    Args:
        checkpoint: a run, <run>/<epoch>, or a file of weights, ours or another project's
        out: a new folder; for file: a new .safetensors, .pth or .pt
        to: timm: a folder that timm.create_model("local-dir:…") opens; hf: a folder of Transformers (of a MAE-ST,
            one for here); public: model.pth under the names of the public MAE or MAE-ST code, with the decoder; onnx:
            the encoder, for any batch and size; jax: what ml.jax_encoder reads; file: the encoder under timm's names,
            or a MAE-ST under its public names, as one file
        results: for the model card: folders of siammae eval, whose numbers are quoted with their protocol
        licence: for the model card and timm's configuration: one that the Hub knows, such as cc-by-nc-4.0
        root: folder that holds checkpoints/
    """
    from ml.export import write_file, write_folder
    from ml.foreign import open_export
    from ml.model_card import read_scores

    suffix = out.suffix.lower()
    if to == "file" and suffix not in (".safetensors", ".pth", ".pt"):
        raise InputError(
            f"{out} ends in {suffix or 'nothing'}; weights are written as .safetensors, .pth or .pt, or into a folder "
            "with --to timm, hf, public, onnx or jax"
        )
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; name another place or move it away")
    scores = read_scores(results)
    model, record = open_export(checkpoint, root)
    if to == "file":
        print(f"{out}: {write_file(model, out)}")
        return
    log = root / "losses" / f"{record.get('run')}.jsonl"
    write_folder(model, out, to, record, scores=[*scores, *read_scores((), log)], licence=licence)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
