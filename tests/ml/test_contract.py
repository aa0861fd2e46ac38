"""What every model promises, asked of all: SiamMAE with its kinds of encoder and decoder, MAE-ST with its masks.

A model is given a video, uint8 [B, F, 3, H, W], and returns loss, prediction [B, N, P] and mask [B, N]. Sizes here are
small, grids are not square, and clips have an odd number of steps.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from dataset_loader.synthetic import synthetic_video
from mae.masking import MASKINGS, random_masking, visible_count
from mae.models_mae import MAEEncoder
from mae.models_mae_st import SpatiotemporalMAE
from mae.patches import IMAGENET_MEAN, IMAGENET_STD, MAE_ST_MEAN, MAE_ST_STD
from ml.SiamMAE import MODELS, SiamMAE, build_model
from ml.utils import train_one_epoch
from tests.slowly import slowly

GOLDEN = Path(__file__).parents[1] / "golden"
PATCH = 8


@dataclass(frozen=True)
class Case:
    """A way to build a model, and where in its video its places are."""

    name: str
    kind: tuple[str, ...]
    frames: int
    predicted: int = 1
    """frames that are predicted in one place"""

    @property
    def pairs(self) -> bool:
        return self.name == "SiamMAE"

    def build(self, seed=0, size=(24, 32), mask_ratio=0.75, width=48, depth=2, **kw):
        """A small model whose every parameter is moved, so that nothing is zero by its initialisation."""
        torch.manual_seed(seed)
        if self.pairs:
            encoder = MAEEncoder(img_size=size, patch_size=PATCH, embed_dim=width, depth=depth, num_heads=4)
            encoder_kind, decoder_kind = self.kind
            model = SiamMAE(
                encoder, mask_ratio, encoder_kind=encoder_kind, decoder_kind=decoder_kind, decoder_size=(32, 2, 4), **kw
            )
        else:
            steps = self.frames // 2
            model = SpatiotemporalMAE(
                size, PATCH, self.frames, 2, steps * self.predicted, width, depth, 4, 32, 2, 4,
                mask_ratio=mask_ratio, mask_kind=self.kind[0], **kw,
            )  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    def video(self, batch=2, size=(24, 32), frames=None, seed=0):
        shape = (batch, frames or self.frames, 3, *size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

    def places(self, video):
        """(number in the mask, frames, rows, columns) of every place; the number is None where all is always seen."""
        F, _, H, W = video.shape[1:]
        for step in range(2 if self.pairs else F // 2):
            frames = slice(step, step + 1) if self.pairs else slice(2 * step, 2 * step + 2)
            for row in range(H // PATCH):
                for column in range(W // PATCH):
                    n = row * (W // PATCH) + column + (0 if self.pairs else step * (H // PATCH) * (W // PATCH))
                    rows, columns = slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH)
                    yield (None if self.pairs and step == 0 else n), frames, rows, columns

    def normalized(self, frames):
        """uint8 frames [..., 3, H, W] as the public weights were trained: those of MAE, and those of MAE-ST."""
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if self.pairs else (MAE_ST_MEAN, MAE_ST_STD)
        return (frames / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    def targets(self, video):
        """The frames to be predicted, normalised: [B, F', 3, H, W]."""
        frames = self.normalized(video)
        if self.pairs:
            return frames[:, 1:]
        wanted = [int(k * (self.frames - 1) / (self.frames // 2 * self.predicted - 1)) for k in range(self.count)]
        return frames[:, wanted]

    @property
    def count(self):
        return 1 if self.pairs else self.frames // 2 * self.predicted


PAIRS = [
    Case("SiamMAE", (encoder, decoder), 2)
    for encoder in ("siamese", "joint")
    for decoder in ("cross-self", "cross", "joint", "rotary")
]
CLIPS = [Case("MAE-ST", (kind,), 6) for kind in MASKINGS] + [Case("MAE-ST", ("agnostic",), 6, predicted=2)]
TWO = [PAIRS[0], CLIPS[0]]


def of(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda c: "-".join((c.name, *c.kind, str(c.predicted))))


@of(PAIRS + CLIPS)
def test_hidden_predictions_see_all_that_is_visible_and_nothing_hidden(case):
    """Mask tokens must attend to what is seen; nothing of what is to be predicted may leak."""
    model = case.build()
    video = (case.video().float() / 255).requires_grad_()
    _, prediction, mask = model(video, seeds=torch.tensor([1, 2]))
    assert mask.any(1).all() and not mask.all(1).any()
    blind = case.kind == ("siamese", "cross")  # without self-attention f2's places do not see each other
    for b, n in mask.nonzero().tolist():
        (gradient,) = torch.autograd.grad(prediction[b, n].sum(), video, retain_graph=True)
        assert not gradient[1 - b].any(), "samples of a batch see each other"
        for number, frames, rows, columns in case.places(video):
            reached = gradient[b, frames, :, rows, columns]
            if number is not None and mask[b, number]:
                assert not reached.any(), f"hidden pixels of place {number} leak"
            elif not (blind and number is not None):
                assert reached.abs().amax(dim=(1, 2, 3)).all(), f"place {number} is visible and not looked at"


@of(PAIRS + CLIPS)
def test_other_hidden_pixels_give_the_same_prediction_to_the_bit(case):
    model, video, seeds = case.build(), case.video(), torch.tensor([1, 2])
    _, prediction, mask = model(video, seeds=seeds)
    other = video.clone()
    for b in range(2):
        for number, frames, rows, columns in case.places(video):
            if number is not None and mask[b, number]:
                other[b, frames, :, rows, columns] = 255 - other[b, frames, :, rows, columns]
    assert not torch.equal(other, video) and torch.equal(model(other, seeds=seeds)[1], prediction)


@of(PAIRS + CLIPS)
def test_every_parameter_gets_a_gradient(case):
    model = case.build()
    model(case.video())[0].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


@of(PAIRS + CLIPS)
def test_the_loss_is_the_mean_over_hidden_places_by_nested_loops(case):
    """And it does not depend on the batch's size."""
    for norm_pix_loss in (True, False):
        model, video, seeds = case.build(norm_pix_loss=norm_pix_loss), case.video(3), torch.arange(3)
        loss, prediction, mask = model(video, seeds=seeds)
        target = brute_force_patches(case.targets(video), case.predicted)
        if norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        errors = [(prediction[b, n] - target[b, n]).square().mean().item() for b, n in mask.nonzero().tolist()]
        assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
        alone = [model(video[b : b + 1], seeds=seeds[b : b + 1])[0].item() for b in range(3)]
        assert loss.item() == pytest.approx(sum(alone) / 3, rel=1e-5)
        pixels = case.normalized(video)
        own = model.target(pixels)
        torch.testing.assert_close(own, target, rtol=1e-4, atol=1e-5)


def brute_force_patches(frames, together):
    """Frames [B, F', 3, H, W] → patches [B, N, P], pixel by pixel: within one, frame, row, column, channel."""
    B, F, _, H, W = frames.shape
    patches = [
        [
            [
                frames[b, step * together + k, c, row * PATCH + y, column * PATCH + x].item()
                for k in range(together)
                for y in range(PATCH)
                for x in range(PATCH)
                for c in range(3)
            ]
            for step in range(F // together)
            for row in range(H // PATCH)
            for column in range(W // PATCH)
        ]
        for b in range(B)
    ]
    return torch.tensor(patches)


@of([PAIRS[0], CLIPS[0], CLIPS[-1]])
def test_patches_by_brute_force_and_back(case):
    """On h ≠ w, another grid than the model's own, and odd numbers of steps: three, five and one."""
    model = case.build()
    for size, grid, steps in (((24, 32), None, 3), ((16, 40), (2, 5), 5), ((32, 8), (4, 1), 1)):
        frames = torch.randn(2, 1 if case.pairs else steps * case.predicted, 3, *size)
        patches = model.patchify(frames[:, 0] if case.pairs else frames)
        assert torch.equal(patches, brute_force_patches(frames, case.predicted))
        back = model.unpatchify(patches, grid)
        assert torch.equal(back[:, None] if case.pairs else back, frames)


@of(PAIRS + CLIPS)
def test_masks_differ_by_sample_and_step_and_repeat_by_seed(case):
    """Masks that follow a rule and are not drawn are always the same."""
    model = case.build(mask_ratio=0.6)
    video = case.video(8)
    drawn = {tuple(m.tolist()) for _ in range(4) for m in model(video)[2]}
    assert len(drawn) == 1 if case.kind[0] in ("prospective", "retrospective") else len(drawn) > 2
    seeds = torch.arange(8) + 5
    masks = model(video, seeds=seeds)[2]
    assert torch.equal(masks, model(video, seeds=seeds)[2])
    assert torch.equal(masks[3:4], model(video[3:4], seeds=seeds[3:4])[2])
    noise = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(video, noise=noise)[2], model(video, noise=noise)[2])
    with pytest.raises(InputError, match="noise has shape"):
        model(video, noise=noise[:, 1:])


@of(TWO)
def test_a_picture_survives_normalising_and_patches(case):
    """uint8 → pixels → patches → pixels → [0, 1], each with the model's own statistics."""
    model, frames = case.build(), case.video(frames=case.count)
    pixels = model.normalize(frames)
    torch.testing.assert_close(pixels, case.normalized(frames), rtol=0, atol=1e-5)
    patches = model.patchify(pixels[:, 0] if case.pairs else pixels)
    shown = model.denormalize(model.unpatchify(patches))
    assert torch.equal((shown * 255).round().to(torch.uint8), frames[:, 0] if case.pairs else frames)


@of(TWO)
@pytest.mark.parametrize("mask_ratio", [0.3, 0.5, 0.75, 0.9, 0.95])
def test_as_many_places_stay_visible_as_the_ratio_says(case, mask_ratio):
    """The count of `visible_count`, with every model."""
    mask = case.build(mask_ratio=mask_ratio)(case.video())[2]
    N = mask.shape[1]
    assert mask.sum(1).tolist() == [N - visible_count(N, mask_ratio)] * 2


@of([PAIRS[0], PAIRS[3], *CLIPS])
def test_encode_is_the_training_path_at_mask_ratio_0(case):
    """With widths such as 48 and h ≠ w, a shortcut would not even run."""
    model, images = case.build(mask_ratio=0.0).eval(), case.video(frames=1)[:, 0]
    features = model.encode(images)
    assert features.shape == (2, 3, 4, 48)
    pixels = case.normalized(images)
    if case.pairs:
        past = model.encoder.transform(model.encoder.tokens(pixels))[:, 1:]
        torch.testing.assert_close(past.unflatten(1, (3, 4)), features, rtol=0, atol=1e-5)
        ids_keep, _, ids_restore = random_masking(torch.rand(2, 12), 0.0)
        latent, shape = model.encoder.transform(model.encoder.tokens(pixels, ids_keep))[:, 1:], (1, 3, 4)
    else:
        still = pixels[:, None].expand(-1, case.frames, -1, -1, -1)
        (latent, _, ids_restore), shape = model.forward_encoder(still), (3, 3, 4)
    in_order = latent.gather(1, ids_restore[..., None].expand(-1, -1, 48)).unflatten(1, shape)
    torch.testing.assert_close(in_order.mean(1), features, rtol=0, atol=1e-5)
    assert model.encode(case.video(1, (40, 16), 1)[:, 0]).shape == (1, 5, 2, 48)


@of(TWO)
def test_floats_are_the_same_frames(case):
    model, video, seeds = case.build(), case.video(), torch.tensor([1, 2])
    one, other = (model(v, seeds=seeds)[1] for v in (video, video.float() / 255))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@of(PAIRS + CLIPS)
def test_another_size_than_trained(case):
    model = case.build()
    loss, prediction, mask = model(case.video(2, (16, 40)))
    N = 10 if case.pairs else 30
    assert prediction.shape == (2, N, case.predicted * 192) and mask.shape == (2, N) and loss.isfinite()
    if not case.pairs:  # and of another length
        loss, prediction, mask = model(case.video(2, (16, 40), 10))
        assert prediction.shape == (2, 50, case.predicted * 192) and mask.shape == (2, 50) and loss.isfinite()


@of(PAIRS + CLIPS)
def test_a_configuration_builds_the_model_again(case):
    model = case.build(mask_ratio=0.5, norm_pix_loss=False)
    again = build_model(model.config)
    again.load_state_dict(model.state_dict())
    video, seeds = case.video(1), torch.tensor([3])
    assert torch.equal(model(video, seeds=seeds)[0], again(video, seeds=seeds)[0]) and again.config == model.config
    assert all(isinstance(v, str | int | float | tuple | list | dict | bool) for v in model.config.values())
    assert build_model(model.config, mask_ratio=0.9).mask_ratio == 0.9
    with pytest.raises(InputError, match="'SiamMAE' or 'MAE' or 'MAE-ST'"):
        build_model({**model.config, "model": "ViT"})


def test_a_configuration_from_before_the_pixels_statistics_means_imagenets():
    """Models of clips were trained with them until they became a part of the model; the newer ones keep their own."""
    model = CLIPS[0].build(pixel_mean=(0.1, 0.2, 0.3))
    old = {name: value for name, value in model.config.items() if not name.startswith("pixel_")}
    assert old.keys() != model.config.keys() and build_model(old).pixel_mean == IMAGENET_MEAN
    assert build_model(old).pixel_std == IMAGENET_STD
    again = build_model(json.loads(json.dumps(model.config)))
    assert (again.pixel_mean, again.pixel_std) == ((0.1, 0.2, 0.3), MAE_ST_STD)


@of(TWO)
def test_what_saves_memory_gives_the_same_numbers(case):
    """Checkpointing computes twice what it does not keep; a decoder in full precision is one outside of autocast."""
    video, seeds, gradients = case.video(), torch.tensor([1, 2]), []
    for checkpointing in (False, True):
        model = case.build(checkpointing=checkpointing)
        model(video, seeds=seeds)[0].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert model.config == case.build().config
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        kinds = [case.build(decoder_float32=x)(video, seeds=seeds)[1].dtype for x in (False, True)]
    assert kinds == [torch.bfloat16, torch.float32]


@pytest.mark.slow  # `test_gpu_ready` compiles block by block
@of(TWO)
def test_it_compiles_in_one_piece(case):
    """Traced, not built: no step of the arithmetic needs Python in between, once the mask's noise is there."""
    model, video = case.build(), case.video()
    noise = torch.rand(model(video)[2].shape, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(video, noise=noise)[0], model(video, noise=noise)[0])
    torch._dynamo.reset()


@of(TWO)
def test_bad_input_is_named(case):
    with pytest.raises(InputError, match=r"\[2, 3, 24, 32\].*expected \[B"):
        case.build()(case.video(frames=1)[:, 0])
    with pytest.raises(InputError, match="25×32"):
        case.build()(case.video(size=(25, 32)))
    with pytest.raises(InputError, match=r"0\.95 for 95 %"):
        case.build(mask_ratio=95)(case.video())
    with pytest.raises(InputError, match="mask ratio of 0.0 all .* stay visible"):
        case.build(mask_ratio=0.0)(case.video())
    with pytest.raises(InputError, match="siammae_small_patch16.*mae_st_large_patch16"):
        build_model("siammae_small")


@pytest.mark.parametrize("name", MODELS)
def test_named_models(name):
    with torch.device("meta"):
        model = build_model(name, mask_ratio=0.95)
    small, great, micro = (256, 4, 8), (512, 8, 16), (128, 2, 4)
    expected = {
        "tiny_patch16": (192, small), "small_patch16": (384, small), "small_patch8": (384, small),
        "base_patch16": (768, great), "large_patch16": (1024, great), "huge_patch16": (1280, great),
        "micro_patch8": (128, micro),
    }  # fmt: skip
    assert model.norm_pix_loss and model.mask_ratio == 0.95
    if model.sample_shape[0] > 2:
        dim, _ = expected[name.removeprefix("mae_st_")]
        a = model.architecture
        decoder = a["decoder_embed_dim"], a["decoder_depth"], a["decoder_num_heads"]
        assert (a["embed_dim"], decoder) == (dim, micro if "micro" in name else (512, 4, 16))
        assert (a["num_frames"], a["t_patch_size"], a["pred_t_dim"]) == ((8, 2, 4) if "micro" in name else (16, 2, 8))
    elif name.startswith("mae_"):
        sizes = {"huge_patch14": (1280, great), **expected}[name.removeprefix("mae_")]
        assert (model.encoder.embed_dim, tuple(model.mae.decoder_config.values())) == sizes
    else:
        assert (model.encoder.embed_dim, model.decoder.size) == expected[name.removeprefix("siammae_")]


def scenes(case, count, size):
    """Videos of the synthetic world, not through a decoder: the same on every machine."""
    times = [0.2 * k for k in range(case.frames)]
    made = [synthetic_video(seed, height=size[0], width=size[1], times=times) for seed in range(count)]
    return torch.stack([torch.from_numpy(scene.frames) for scene in made])


def train(model, batches, lr):
    """The losses of steps with a plain AdamW and a warm-up of ten of them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 10))
    loader = [{"video": video, "seed": seeds} for video, seeds in batches]
    return train_one_epoch(loader, optimizer, scheduler, "cpu", model)


@pytest.mark.parametrize("case", [PAIRS[0], *slowly(CLIPS[0])], ids=lambda case: case.name)
def test_four_samples_are_learnt_by_heart(case):
    """With fixed masks the loss falls below 30 % of its start within 130 steps."""
    model, video = case.build(mask_ratio=0.9, depth=1), scenes(case, 4, (24, 32))
    losses = train(model, [(video, torch.arange(4))] * 130, 5e-3)
    assert losses[-1] < 0.3 * losses[0] and losses[-1] < 0.3


@of(TWO)
def test_ten_steps_give_the_recorded_losses(case):
    """Renew after an intended change of the arithmetic: RENEW_GOLDEN=1 make test, and say so in the commit."""
    model, video = case.build(), scenes(case, 8, (24, 32))
    losses = train(model, [(video[k % 2 :: 2], torch.arange(4) + 10 * k) for k in range(10)], 1e-3)
    path = GOLDEN / f"ten_steps_{case.name.lower().replace('-', '_')}.txt"
    if os.environ.get("RENEW_GOLDEN"):
        path.write_text("".join(f"{loss:.6f}\n" for loss in losses))
    expected = [float(line) for line in path.read_text().splitlines()]
    assert losses == pytest.approx(expected, rel=1e-4), "see this test's docstring"
