"""Batched augmentation against torchvision and timm, which do one image at a time."""

import math
import random

import numpy as np
import pytest
import torch
from timm.data import auto_augment
from torch.nn import functional
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.training import augment, randaugment
from cctlib.training.recipes import Recipe

PUBLISHED = Recipe(crop_scale=0.8, flip=True, randaugment=9, erasing=0.25, mixup=0.8, cutmix=1.0)
CONSTANTS = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
FILL = [129, 124, 112]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def pixels(generator):
    """Twelve smooth images with a few sharp edges, and one flat one."""
    coarse = torch.randint(256, (12, 3, 5, 6), generator=generator).float()
    smooth = functional.interpolate(coarse, (24, 32), mode="bicubic").clamp(0, 255)
    smooth[:, :, 6:9, 10:20] = 255 - smooth[:, :, 6:9, 10:20]
    smooth[-1] = 77
    return smooth.round().to(torch.uint8)


def differ(ours, theirs):
    """Largest difference between two uint8 batches, in grey values."""
    return (ours.int() - theirs.int()).abs().max().item()


def test_shift_is_a_crop_of_the_reflected_image(pixels, generator):
    offsets = torch.randint(-4, 5, (12, 2), generator=generator)
    padded = functional.pad(pixels.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    for image, around, (down, right), ours in zip(pixels, padded, offsets, augment.shift(pixels, offsets), strict=True):
        height, width = image.shape[1:]
        assert torch.equal(ours, around[:, 4 - down : 4 - down + height, 4 - right : 4 - right + width])


def test_half_of_the_images_are_mirrored(pixels):
    """Nothing else happens to them."""
    many, labels = pixels[:11].repeat(40, 1, 1, 1), torch.zeros(440, dtype=torch.long)
    images, _ = augment.augment(many, labels, Recipe(flip=True, batch=440), seed=0, num_labels=1, **CONSTANTS)
    plain = data.normalise(many, **CONSTANTS)
    mirrored = (images == plain.flip(3)).flatten(1).all(1)
    assert torch.equal(images[~mirrored], plain[~mirrored])
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("area", [(0.05, 0.3), (0.8, 1.0)])
def test_resized_crop_is_torchvisions(pixels, generator, cubic, area):
    boxes = augment.draw_boxes(12, 24, 32, area, 3 / 4, generator)
    mode = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
    ours = augment.resized_crop(pixels, boxes, torch.full((12,), cubic))
    for image, box, one in zip(pixels, boxes.tolist(), ours, strict=True):
        exact = vision.resized_crop(image.float(), *box, [24, 32], mode, antialias=True)
        torch.testing.assert_close(one.float(), exact.clamp(0, 255), atol=0.51, rtol=0)


def test_a_crop_of_the_whole_image_changes_nothing(pixels):
    whole = torch.tensor([0, 0, 24, 32]).expand(12, 4)
    for cubic in (False, True):
        assert torch.equal(augment.resized_crop(pixels, whole, torch.full((12,), cubic)), pixels)


OF_TIMM = {
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
    "colour": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
}


def torchvisions(name, image, amount):
    """What torchvision makes of one image, with the amount that timm takes for a level."""
    height, width = image.shape[1:]

    def affine(angle=0.0, translate=(0, 0), shear=(0.0, 0.0), centre=None):
        return vision.affine(image, angle, list(translate), 1.0, shear, InterpolationMode.BILINEAR, FILL, centre)

    slope = math.degrees(math.atan(amount))
    return {
        "rotate": lambda: affine(angle=-amount),  # ours names the map from output to input
        "shear_x": lambda: affine(shear=[slope, 0.0], centre=[0.0, 0.0]),
        "shear_y": lambda: affine(shear=[0.0, slope], centre=[0.0, 0.0]),
        "translate_x": lambda: affine(translate=(-amount * width, 0)),
        "translate_y": lambda: affine(translate=(0, -amount * height)),
        "colour": lambda: vision.adjust_saturation(image, amount),
        "contrast": lambda: vision.adjust_contrast(image, amount),
        "brightness": lambda: vision.adjust_brightness(image, amount),
        "sharpness": lambda: vision.adjust_sharpness(image, amount),
        "posterize": lambda: vision.posterize(image, int(amount)),
        "solarize": lambda: vision.solarize(image, float(amount)),
        "solarize_add": lambda: torch.where(image < 128, image + int(amount), image),
        "autocontrast": lambda: vision.autocontrast(image),
        "equalize": lambda: vision.equalize(image),
        "invert": lambda: vision.invert(image),
    }[name]()


def test_the_operations_are_those_of_timm():
    assert set(randaugment.OPERATIONS) == set(OF_TIMM)
    assert sorted(OF_TIMM.values()) == sorted(auto_augment.rand_augment_choices("", increasing=True))


@pytest.mark.parametrize("name", OF_TIMM)
def test_an_operation_is_torchvisions_with_the_strength_of_timm(pixels, monkeypatch, name):
    levels = torch.linspace(-1, 1, 12)
    ours = randaugment.OPERATIONS[name](pixels, levels, FILL)
    strength = auto_augment.LEVEL_TO_ARG[OF_TIMM[name]]
    for image, level, one in zip(pixels, levels.tolist(), ours, strict=True):
        monkeypatch.setattr(random, "random", lambda level=level: 0.0 if level > 0 else 1.0)  # timm's coin for the sign
        amount = strength(10 * abs(level), {})[0] if strength else 0.0
        assert differ(one, torchvisions(name, image, amount)) <= 1, level


def test_rand_augment_treats_every_image_as_if_it_were_alone(pixels, generator):
    many = pixels.repeat(8, 1, 1, 1)
    operations, levels = randaugment.draw_operations(9, len(many), generator)
    assert set(operations.flatten().tolist()) == set(range(randaugment.IDENTITY + 1))
    together = randaugment.rand_augment(many, operations, levels, FILL)
    for row in range(len(many)):
        one = slice(row, row + 1)
        alone = randaugment.rand_augment(many[one], operations[one], levels[one], FILL)
        assert differ(together[one], alone) <= 1  # sums over a larger batch may round otherwise
    untouched = (operations == randaugment.IDENTITY).all(dim=1)
    assert torch.equal(together[untouched], many[untouched])


def test_operations_happen_half_of_the_time_with_the_published_strength(generator):
    operations, levels = randaugment.draw_operations(9, 30_000, generator)
    assert (operations == randaugment.IDENTITY).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert levels.abs().mean().item() == pytest.approx(0.9, abs=0.01)
    assert levels.abs().max().item() == 1
    assert (levels > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    counts = torch.bincount(operations.flatten())[: randaugment.IDENTITY]
    assert counts.min() > 0.9 * counts.float().mean()


def test_boxes_have_the_wanted_area_and_shape(generator):
    top, left, height, width = augment.draw_boxes(5_000, 32, 32, (0.8, 1.0), 3 / 4, generator).unbind(1)
    assert (height * width).min() >= 0.8 * 1024 - 32
    assert (top + height).max() <= 32 and (left + width).max() <= 32 and torch.stack([top, left]).min() >= 0
    assert (width / height).max() < 4 / 3 + 0.05 and (width / height).min() > 3 / 4 - 0.05
    assert (height * width / 1024).float().mean().item() == pytest.approx(0.88, abs=0.02)


def test_boxes_that_never_fit_are_the_whole_image(generator):
    assert (augment.draw_boxes(50, 32, 32, (1.5, 1.6), 3 / 4, generator) == torch.tensor([0, 0, 32, 32])).all()


def test_erasing_fills_a_quarter_of_the_images_with_noise(generator):
    boxes = augment.draw_erasing(0.25, 20_000, 32, 32, generator)
    erased = boxes[:, 2] > 0
    assert erased.float().mean().item() == pytest.approx(0.25, abs=0.015)
    share = (boxes[:, 2] * boxes[:, 3])[erased] / 1024
    assert share.min() > 0.01 and share.max() < 0.36
    images, noise = torch.zeros(200, 3, 32, 32), torch.ones(200, 3, 32, 32)
    filled = augment.erase(images, boxes[:200], noise)
    for image, (top, left, height, width) in zip(filled, boxes[:200].tolist(), strict=True):
        assert image.sum() == 3 * height * width
        assert image[:, top : top + height, left : left + width].sum() == 3 * height * width


@pytest.mark.parametrize("parameter", [0.2, 1.0, 30.0])
def test_shares_follow_the_beta_distribution(parameter):
    generator, settings = np.random.default_rng(1), Recipe(mixup=parameter)
    shares = np.array([augment.draw_mix(settings, 32, 32, generator)[0] for _ in range(4_000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * parameter + 1)), rel=0.1)


def test_mixup_and_cutmix_mix_pixels_and_targets_in_the_same_proportion():
    generator = np.random.default_rng(3)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 10)
    targets = torch.eye(4)
    assert torch.equal(augment.partners(targets).argmax(1), torch.tensor([1, 0, 3, 2]))
    for how in ((0.3, None), (1 - 12 / 80, (2, 5, 1, 5))):
        mixed, wanted = augment.mix(images, targets, *how)
        assert torch.allclose(wanted.sum(1), torch.ones(4))
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), wanted @ torch.arange(4.0))
    kinds = [augment.draw_mix(PUBLISHED, 32, 32, generator) for _ in range(2_000)]
    boxes = [(share, box) for share, box in kinds if box]
    assert len(boxes) / 2_000 == pytest.approx(0.5, abs=0.04)
    for share, (top, bottom, left, right) in boxes:
        assert 0 <= top <= bottom <= 32 and 0 <= left <= right <= 32
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / 1024)
    assert augment.draw_mix(Recipe(cutmix=1.0), 32, 32, generator)[1] is not None
    assert augment.draw_mix(Recipe(mixup=1.0), 32, 32, generator)[1] is None


def test_nothing_switched_on_changes_nothing(pixels):
    labels = torch.arange(12) % 5
    images, targets = augment.augment(pixels, labels, Recipe(batch=12), seed=0, num_labels=5, **CONSTANTS)
    assert torch.equal(images, data.normalise(pixels, **CONSTANTS))
    assert torch.equal(targets, functional.one_hot(labels, 5).float())


def test_parts_of_a_batch_are_augmented_like_the_whole(pixels):
    """Processes that share a batch make the images that one process would have made."""
    settings = Recipe(batch=12, shift=3, crop_scale=0.6, flip=True, randaugment=9, erasing=0.5, mixup=0.8, cutmix=1.0)
    labels = torch.arange(12) % 5
    for seed in range(4):
        how = {"seed": seed, "num_labels": 5} | CONSTANTS
        whole = augment.augment(pixels, labels, settings, **how)
        again = augment.augment(pixels, labels, settings, **how)
        assert torch.equal(whole[0], again[0]) and torch.equal(whole[1], again[1])
        for rows in (slice(0, 6), slice(6, 12)):
            part = augment.augment(pixels[rows], labels[rows], settings, first=rows.start, **how)
            torch.testing.assert_close(part[0], whole[0][rows], atol=1 / 255 / 0.25, rtol=0)  # one grey value
            assert torch.equal(part[1], whole[1][rows])


@pytest.mark.parametrize(
    "wrong",
    [{"crop_scale": 0.0}, {"randaugment": 11}, {"erasing": -0.1}, {"mixup": -1.0}, {"cutmix": math.inf}, {"shift": -1}],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is"):
        Recipe(**wrong)
