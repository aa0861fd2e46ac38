"""Feature sources by name, checkpoints of this workspace among them: no command, but shared by `eval` and `track`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError

if TYPE_CHECKING:
    from evaluation.controls import Tracker
    from evaluation.features import Source


def open_source(name: str, root: Path, device: str, half: bool) -> "Tracker":
    """What a name stands for: a control, a kind of source (`_features`), or a checkpoint of this workspace."""
    from evaluation.controls import tracker

    return tracker(name, lambda rest: _features(rest, root, device=device, half=half))


def _features(name: str, root: Path, **options: Any) -> "Source":
    from evaluation.features import SOURCES, Kind, centred, feature_source, model_source, names
    from mae.formats import load_encoder, split_options
    from ml.checkpoints import find_checkpoint, load_model
    from ml.foreign import is_foreign

    own = {
        "untrained": Kind("CHECKPOINT", partial(_untrained, root)),
        "mae_st": Kind("PATH", _mae_st),
        "one_tubelet": Kind("MAE-ST", partial(_one_tubelet, root)),
        "jax": Kind("FILE", _jax),
        "settled": Kind("FILE[@SOURCE]", partial(_settled, root)),
        "decoder": Kind("RUN", partial(_decoder, root)),
        "centred": Kind("SOURCE", lambda inner, **keywords: centred(_features(inner, root, **keywords))),
    }
    if name.partition(":")[0] in {**SOURCES, **own}:
        return feature_source(name, more=own, **options)
    if is_foreign(name):
        path, _ = split_options(name)
        return model_source(name, load_encoder(name), file=path if path.is_file() else None, **options)
    try:
        path = find_checkpoint(name, root)
    except InputError as error:
        others = ", ".join([*names({**own, **SOURCES}), "copy", "oracle[:SOURCE]"])
        raise InputError(f"{error}; or as a source one of {others}") from error
    return model_source(name, load_model(path)[0], file=path, **options)


def _untrained(root: Path, name: str, **options: Any) -> "Source":
    """The model of a checkpoint before its training."""
    import torch

    from evaluation.features import model_source
    from ml.checkpoints import find_checkpoint, load_run
    from ml.SiamMAE import build_model

    config = load_run(find_checkpoint(name, root))["config"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config)
    return model_source(f"untrained (as {name}, seed 0)", model, **options)


def _mae_st(path: str, steps: int | None = None, **options: Any) -> "Source":
    """Public weights of MAE-ST, from a file or a folder that holds it."""
    from evaluation.features import architecture, model_source
    from mae.models_mae_st import ARCHITECTURES_ST
    from mae.weights import load_pretrained_st

    model = load_pretrained_st(path, architecture(path, ARCHITECTURES_ST, "large"))
    file, encode = Path(path) if Path(path).is_file() else None, partial(model.encode, steps=steps)
    return model_source(f"mae_st:{path}", model, file=file, encode=encode, **options)


def _one_tubelet(root: Path, name: str, **options: Any) -> "Source":
    """A MAE-ST that takes an image as the shortest still clip: cheaper, and without a mean over time."""
    from dataclasses import replace

    from evaluation.features import model_source
    from ml.checkpoints import find_checkpoint, load_model

    kind, _, rest = name.partition(":")
    if kind == "mae_st" and rest:
        return replace(_mae_st(rest, steps=1, **options), name=f"one_tubelet:{name}")
    path = find_checkpoint(name, root)
    model: Any = load_model(path)[0]
    if model.of_pairs:
        raise InputError(f"{name} is a model of pairs; one_tubelet: is for a MAE-ST, which takes an image as a clip")
    encode = partial(model.encode, steps=1)
    return model_source(f"one_tubelet:{name}", model, file=path, encode=encode, **options)


def _settled(root: Path, name: str, **options: Any) -> "Source":
    """A source with the head of `siammae settle` on its features; it must be that on which the head was trained."""
    import torch

    from evaluation.features import Source, file_digest
    from ml.extensions.settle import load_head

    file, _, other = name.partition("@")
    head, saved = load_head(Path(file))
    inner = _features(other or saved["source"], root, **options).compared_by_cosine("a settled head")
    if saved["weights"] != inner.weights:
        raise InputError(
            f"{file} was trained on {saved['source']} with other weights ({saved['weights']}) than {inner.name} has "
            f"({inner.weights}): name the right source, as settled:{file}@SOURCE"
        )
    head = head.to(options.get("device", "cpu"))

    def encode(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            settled: torch.Tensor = head(inner.encode(images))
        return settled

    return Source(f"settled:{file} (on {inner.name})", encode, inner.patch_size, file_digest(file), inner.model)


def _decoder(root: Path, name: str, device: str = "cpu", half: bool = False) -> "Source":
    """The cross-attention of a model's decoder in place of cosines; computed in full precision."""
    import torch

    from evaluation.features import Source, file_digest
    from ml.checkpoints import find_checkpoint, load_model
    from ml.extensions.decoder_affinity import DecoderAffinity

    path = find_checkpoint(name, root)
    model: Any = load_model(path, device)[0]
    decoder = DecoderAffinity(model, name)

    def encode(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return decoder.encode(images.to(device))

    return Source(f"decoder:{name}", encode, model.patch_size, file_digest(path), model, decoder.affinity)


def _jax(path: str, **options: Any) -> "Source":
    """An encoder that `siammae export --to jax` wrote, computed by JAX."""
    from evaluation.features import Source, file_digest

    try:
        from ml.jax_encoder import torch_encode
    except ImportError as error:
        raise InputError(f"jax:{path} needs JAX, which is not here ({error}): pip install 'siammae[jax]'") from error
    encode, patch_size = torch_encode(path)
    return Source(f"jax:{path}", encode, patch_size, file_digest(path))
