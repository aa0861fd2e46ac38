"""Every command on a model of clips: from each form of storage to a run, and from a run to numbers and pictures."""

import json
import re
from functools import partial

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cli.feature_sources import open_source
from cli.main import main
from common.errors import InputError
from dataset_loader import decode_all
from dataset_loader.images import encode_jpeg
from dataset_loader.packed import write_shard
from mae.models_mae import ARCHITECTURES
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE, fuse_qkv
from mae.patches import IMAGENET_MEAN, IMAGENET_STD
from mae.weights import load_pretrained_st, load_strictly
from ml.checkpoints import find_checkpoint, load_model, load_run, save_checkpoint
from ml.logs import read_losses
from ml.presets import preset
from ml.SiamMAE import build_model
from ml.utils import config_of
from tests.slowly import slowly

SMALL = (
    "--preset", "mae_st_large_smoke", "--image-size", "32", "--visits", "1", "--batch-size", "8",
    "--pairs-per-device", "4", "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def forms(clips, tmp_path_factory):
    """The same six clips as videos, folders of pictures, a packed shard, and MAE3D's ledger."""
    top = tmp_path_factory.mktemp("forms")
    files = sorted(clips.iterdir())
    decoded = [decode_all(path) for path in files]
    (top / "packed").mkdir()
    videos = [(path.stem, zip(*content, strict=True)) for path, content in zip(files, decoded, strict=True)]
    assert write_shard(top / "packed" / "0.tar", videos) == {}
    for form in ("folders", "ledger"):
        for k, (frames, _) in enumerate(decoded, 1):
            (top / form / f"video_{k}").mkdir(parents=True)
            for n, frame in enumerate(frames, 1):
                (top / form / f"video_{k}" / f"img_{n:05d}.jpg").write_bytes(encode_jpeg(frame, 90))
    lines = [f"video_{k} 1 {len(frames)} 0\n" for k, (frames, _) in enumerate(decoded, 1)]
    (top / "ledger" / "ledger.csv").write_text("".join(lines))
    return {"videos": clips, **{form: top / form for form in ("folders", "packed", "ledger")}}


@pytest.fixture(scope="module")
def run(clips, quick, tmp_path_factory):
    """A run of the smoke twin of the paper's recipe: (root, name)."""
    root = tmp_path_factory.mktemp("root")
    assert quick("train", "--data", clips, *SMALL, "--root", root) == 0
    (log,) = (root / "losses").glob("*.txt")
    return root, log.stem


@pytest.mark.parametrize("form", ["packed", "ledger", *slowly("videos", "folders")])
def test_it_trains_from_every_form_of_storage(form, forms, quick, tmp_path, capsys):
    words = ["train", "--data", forms[form], *SMALL, "--epochs", "1", "--warmup-epochs", "0", "--root", tmp_path]
    assert quick(*words) == 0
    said = capsys.readouterr().out
    assert re.search(r"6 videos, 1 .* 24 \w+, 3 steps of 8 ", said)  # 4 clips from each visit
    kinds = {"videos": "6 video files", "folders": "6 folders of pictures", "packed": "6 videos in 1 packed shard"}
    assert kinds.get(form, "6 clips of the ledger") in said
    (log,) = (tmp_path / "losses").glob("*.txt")
    (line,) = read_losses(log)
    assert len(line.losses) == 3 and all(0.5 < loss < 3 for loss in line.losses)
    saved = load_run(find_checkpoint(log.stem, tmp_path))
    assert saved["config"]["model"] == "MAE-ST" and saved["run_config"]["clip_frames"] == 8


def test_the_loss_on_held_out_clips_and_their_picture(run, clips, capsys):
    root, name = run
    words = ["test", name, "--data", clips, "--pairs-per-video", "2", "--workers", "0", "--root", root]
    for _ in range(2):
        assert main([str(word) for word in [*words, "--device", "cpu", "--samples", root / "none.pickle"]]) == 0
    assert "over 12 clips of 6 videos" in capsys.readouterr().out
    first, second = read_losses(root / "test_losses" / f"{name}.txt")
    assert first.mean == second.mean and 0.5 < first.mean < 3 and len(first.losses) == 3  # 12 clips, 4 at once
    assert (root / "test_losses" / f"{name}_2.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_and_films_at_several_ratios(run, clips, tmp_path, capsys):
    root, name = run
    words = ["plot", name, "--root", root, "--data", clips, "--device", "cpu"]
    three = ["--mask-ratio", "0.5", "0.75", "0.9", "--count", "1"]
    for out, options in {"sheet.png": three, "film.gif": three, "film.mp4": ["--mask-kind", "tube"]}.items():
        assert main([str(word) for word in [*words, "--out", tmp_path / out, *options]]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        one_row = sheet.height / 3
        assert 300 < one_row < 700  # three sheets of three rows
    with Image.open(tmp_path / "film.gif") as gif:
        # 4 of the 8 frames are predicted; three clips of three panels of 32 pixels, each shown five times as wide
        assert (gif.n_frames, gif.size) == (4, (3 * 160 + 2 * 4, 3 * 160 + 2 * 4))
        film = np.stack([np.asarray(frame.convert("RGB")).astype(int) for frame in _frames(gif)])
    panels = {(r, c): film[:, 164 * r :, 164 * c :][:, :160, :160] for r in range(3) for c in range(3)}
    for row, hidden in enumerate((32, 48, 58)):  # of 4 steps of 4×4 tubelets
        grey = (np.abs(panels[row, 1] - 128) <= 8).all(-1).mean()
        assert grey == pytest.approx(hidden / 64, abs=0.05)
        assert np.abs(panels[row, 0] - panels[0, 0]).max() == 0  # the same clip in each row
    few, many = (np.abs(panels[row, 0] - panels[row, 2]).mean() for row in (0, 2))
    assert many > 1.2 * few > 2  # visible tubelets are pasted in
    assert np.abs(panels[0, 0][3] - panels[0, 0][0]).mean() > 1  # time passes
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert len(list(film.decode(video=0))) == 4
    again = [str(word) for word in [*words, "--out", tmp_path / "film.gif"]]
    assert main(again) == 2 and "not overwritten" in capsys.readouterr().err


def _frames(gif):
    for number in range(gif.n_frames):
        gif.seek(number)
        yield gif.copy()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x.txt"], "clips and futures are drawn as .png, .gif, .mp4"),
        (["--out", "x.png", "--samples", "samples.pickle"], "are both given"),
        (["--out", "x.png", "--statistics", "past"], "this model has visible or target"),
        (["--out", "x.png", "--mask-ratio", "90"], "0.95 for 95 %"),
        (["--out", "x.png", "--count", "0"], "count is 0"),
    ],
)
def test_a_wrong_plot_gets_one_sentence(arguments, sentence, run, clips, tmp_path, monkeypatch, capsys):
    root, name = run
    monkeypatch.chdir(tmp_path)
    assert main(["plot", name, "--root", str(root), "--data", str(clips), "--device", "cpu", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_without_videos_the_built_in_clips_are_drawn_or_named(run, tmp_path, monkeypatch, capsys):
    root, name = run
    words = ["plot", name, "--root", str(root), "--device", "cpu", "--count", "1", "--out"]
    assert main([*words, str(tmp_path / "a.png")]) == 0

    def none():
        raise InputError("the built-in clips are not installed")

    monkeypatch.setattr("dataset_loader.builtin_clips", none)
    assert main([*words, str(tmp_path / "b.png")]) == 2
    assert "not installed; or name videos of your own with --data" in capsys.readouterr().err


def test_a_model_of_pairs_at_several_ratios_and_what_it_refuses(tmp_path, monkeypatch, capsys):
    model = build_model("siammae_micro_patch8")
    checkpoint = dict(model=model.state_dict(), config=model.config, epoch=1)
    save_checkpoint(tmp_path / "checkpoints" / "pairs" / "last.pt", checkpoint)
    monkeypatch.chdir(tmp_path)
    assert main(["samples", "--out", "samples.pickle", "--count", "2", "--size", "64"]) == 0
    assert main(["plot", "pairs", "--out", "one.png"]) == 0
    assert main(["plot", "pairs", "--out", "two.png", "--mask-ratio", "0.5", "0.95"]) == 0
    with Image.open("one.png") as one, Image.open("two.png") as two:
        assert two.height > 1.6 * one.height
    refused = {
        ("x.gif",): "this model predicts one: write a .png",
        ("x.png", "--mask-kind", "tube"): "a model of pairs has one kind of mask",
        ("x.png", "--statistics", "visible"): "this model has past or target",
    }
    for wrong, said in refused.items():
        capsys.readouterr()
        assert main(["plot", "pairs", "--out", *wrong]) == 2
        assert said in capsys.readouterr().err
    assert model.mask_ratio == 0.75


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".PT", *slowly(".pth")])
def test_the_export_has_the_public_names_and_gives_the_same_features(suffix, run, tmp_path, capsys, monkeypatch):
    """And is read back strictly, with the normalising of pixels that the model has, by what `--weights` reads with."""
    root, name = run
    out = tmp_path / f"st{suffix}"
    assert main(["export", name, "--out", str(out), "--root", str(root)]) == 0
    assert "public names with q, k, v apart (timm has no model of clips)" in capsys.readouterr().out
    state = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)["model"]
    assert {"pos_embed_spatial", "decoder_cls_token", "blocks.0.attn.q.weight", "blocks.0.attn.v.bias"} <= state.keys()
    assert not any("qkv" in key for key in state)
    model, _ = load_model(find_checkpoint(name, root))
    again = build_model(model.config).eval()
    load_strictly(again, fuse_qkv(state), source=out)
    images = torch.rand(2, 3, 24, 40)
    torch.testing.assert_close(again.encode(images), model.encode(images), rtol=0, atol=0)
    sizes = {key: value for key, value in model.architecture.items() if not key.startswith("pixel_")}
    arch = "mae_st_vit_small_patch16"
    monkeypatch.setitem(ARCHITECTURES_ST, arch, lambda **given: SpatiotemporalMAE(**{**sizes, **given}))
    loaded = load_pretrained_st(out, arch)
    assert loaded.eval().pixel_mean == model.pixel_mean and loaded.norm_pix_loss == model.norm_pix_loss
    torch.testing.assert_close(loaded.encode(images), model.encode(images), rtol=0, atol=0)


def test_the_public_weights_of_clips_are_listed(capsys):
    assert main(["weights"]) == 0
    said = capsys.readouterr().out
    assert "/video-mae/pretrain/mae_pretrain_vit_large_k400.pth" in said and "mae_visualize_vit_base.pth" in said


@pytest.fixture
def small_names(monkeypatch):
    """The architectures of ViT-S, by their names, a few numbers wide and two blocks deep."""
    thin = dict(embed_dim=48, depth=2, num_heads=4, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
    for table, name in ((ARCHITECTURES_ST, "mae_st_vit_small_patch16"), (ARCHITECTURES, "mae_vit_small_patch16")):
        monkeypatch.setitem(table, name, partial(table[name], **thin))


@pytest.mark.parametrize("kind", ["public", *slowly("inflated")])
def test_training_starts_from_public_or_inflated_weights(kind, clips, quick, small_names, tmp_path, capsys):
    """Public ones with q, k, v apart; an image MAE inflated: its blocks are the run's, a tiny learning rate later."""
    torch.manual_seed(0)
    if kind == "public":
        source = ARCHITECTURES_ST["mae_st_vit_small_patch16"]()
        state = source.public_state_dict()
    else:
        source = ARCHITECTURES["mae_vit_small_patch16"]()
        state = source.state_dict()
    file = tmp_path / "weights_vit_small.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    words = ["train", "--data", clips, *SMALL, "--model", "mae_st_small_patch16", "--weights", file, "--root", tmp_path]
    options = ["--epochs", "1", "--warmup-epochs", "0", "--base-lr", "1e-9", "--weight-decay", "0"]
    assert quick(*words, *options) == 0
    said = capsys.readouterr().out
    assert ("its encoder is inflated" in said) == (kind == "inflated")
    (log,) = (tmp_path / "losses").glob("*.txt")
    trained = load_run(find_checkpoint(log.stem, tmp_path))["model"]
    own = source.state_dict()
    for key in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.bias", "norm.weight"):
        torch.testing.assert_close(trained[key], own[key], rtol=0, atol=1e-5)
    if kind == "public":
        torch.testing.assert_close(trained["decoder_pred.weight"], own["decoder_pred.weight"], rtol=0, atol=1e-5)
    else:
        kernel = trained["patch_embed.proj.weight"].sum(2)
        torch.testing.assert_close(kernel, own["patch_embed.proj.weight"], rtol=0, atol=1e-5)


def test_a_model_of_clips_has_its_row_in_the_evaluation(run, camvid, tmp_path, capsys):
    root, name = run
    for number, source in enumerate((name, f"untrained:{name}", f"one_tubelet:{name}")):
        words = ["eval", "camvid", "--data", camvid, "--out", tmp_path / str(number), "--source", source]
        options = ["--root", root, "--protocol", "rsp", "--size", "64x96", "--device", "cpu"]
        assert main([str(word) for word in [*words, *options]]) == 0
        content = json.loads((tmp_path / str(number) / "results.json").read_text())
        assert content["source"]["weights"].startswith("sha256 ")
    assert capsys.readouterr().out.count("mIoU") == 6


@torch.no_grad()
def test_sources_of_features(run, small_names, tmp_path):
    """A run averages over all steps, `one_tubelet:` takes one; `mae_st:PATH` reads public weights, q, k, v apart."""
    root, name = run
    images = torch.randint(0, 256, (1, 3, 48, 32), dtype=torch.uint8)
    model, _ = load_model(find_checkpoint(name, root))
    for source, expected in ((name, model.encode(images)), (f"one_tubelet:{name}", model.encode(images, steps=1))):
        opened = open_source(source, root, "cpu", False)
        assert opened.patch_size == 8
        torch.testing.assert_close(opened.encode(images), expected, rtol=0, atol=0)
    assert not torch.equal(model.encode(images), model.encode(images, steps=1))
    torch.manual_seed(1)
    public = ARCHITECTURES_ST["mae_st_vit_small_patch16"]().eval()
    file = tmp_path / "mae_pretrain_vit_small.pth"
    torch.save({"model_state": public.public_state_dict()}, file)
    for source, steps in ((f"mae_st:{file}", None), (f"one_tubelet:mae_st:{file}", 1)):
        features = open_source(source, root, "cpu", False).encode(images)
        torch.testing.assert_close(features, public.encode(images, steps=steps), rtol=0, atol=0)
    pixels = (images.float() / 255 - 0.45) / 0.225  # as the public weights were trained, whatever a source is given
    latent = public.transform(public.tokens(pixels[:, None].expand(-1, 2, -1, -1, -1)))[:, 1:]
    torch.testing.assert_close(features, latent.unflatten(1, (3, 2)), rtol=0, atol=1e-5)
    config = {key: value for key, value in model.config.items() if not key.startswith("pixel_")}
    save_checkpoint(tmp_path / "old.pt", dict(model=model.state_dict(), config=config, epoch=1))  # before it had them
    features = open_source(str(tmp_path / "old.pt"), root, "cpu", False).encode(images)
    model.pixel_mean, model.pixel_std = IMAGENET_MEAN, IMAGENET_STD
    torch.testing.assert_close(features, model.encode(images), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"nothing\.pth does not exist"):
        open_source(f"mae_st:{tmp_path / 'nothing.pth'}", root, "cpu", False)
    pairs = build_model("siammae_micro_patch8")
    save_checkpoint(tmp_path / "p.pt", dict(model=pairs.state_dict(), config=pairs.config, epoch=1))
    with pytest.raises(InputError, match="is a model of pairs; one_tubelet: is for a MAE-ST"):
        open_source(f"one_tubelet:{tmp_path / 'p.pt'}", root, "cpu", False)


def test_the_papers_recipe():
    """Feichtenhofer et al. 2022, appendix A, field by field; repetitions are not counted in the batch."""
    config = preset("mae_st_large").config
    data, how = config.data, config.optimisation
    assert (data.clip_frames, data.stride, data.image_size, config.model.mask_ratio) == (16, 4, 224, 0.9)
    assert (config.model.mask_kind, data.repeated_sampling, how.clip_grad) == ("agnostic", 4, 0.02)
    assert (how.base_lr, how.warmup_epochs, how.epochs, how.layer_decay) == (1.6e-3, 5, 100, 1.0)
    videos = how.batch_size // data.repeated_sampling
    assert config.peak_lr == pytest.approx(1.6e-3 * videos / 256) == pytest.approx(3.2e-3)
    arguments = config.train_arguments
    assert arguments["peak_lr"] == pytest.approx(config.peak_lr)
    assert config.replace(repeated_sampling=1, batch_size=videos).peak_lr == pytest.approx(config.peak_lr)
    assert config.shares(4) == (128, 4)  # torchrun --nproc_per_node=4
    assert preset("mae_st_large_smoke").config.train_arguments["clip_grad"] == 0.02
    with torch.device("meta"):
        model = build_model(config.model.model, **config.model_arguments).config
    sizes = dict(img_size=224, patch_size=16, num_frames=16, t_patch_size=2, pred_t_dim=8, embed_dim=1024, depth=24)
    decoder = dict(num_heads=16, decoder_embed_dim=512, decoder_depth=4, decoder_num_heads=16, norm_pix_loss=True)
    assert {key: model[key] for key in (*sizes, *decoder)} == sizes | decoder


def test_a_checkpoint_without_a_configuration_says_what_its_clips_were():
    model = build_model("mae_st_micro_patch8")
    config = config_of(dict(config=model.config, run_config=None))
    assert config.of_clips and (config.data.clip_frames, config.data.image_size) == (8, 64)
    assert config.dataset_arguments["clip_frames"] == 8 and config.dataset_arguments["stride"] == 4
    pairs = config_of(dict(config=build_model("siammae_micro_patch8").config))
    assert not pairs.of_clips and pairs.data.image_size == 64
    assert config_of(dict(run_config={"image_size": 96}, config={})).data.image_size == 96
