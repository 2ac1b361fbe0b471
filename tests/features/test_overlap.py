"""Public networks trained on private images are noticed, by data set and by class."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismfl.features.matched import overlap_note, overlaps
from prismfl.features.networks import load_features
from prismfl.features.vgg19 import random_vgg

TEN = [str(number) for number in range(10)]
LOW = {"trained_on": "CIFAR-10, 5 of its 10 classes: 0, 1, 2, 3, 4", "classes": TEN[:5], "all_classes": TEN}


@pytest.mark.parametrize(
    ("text", "dataset", "wanted"),
    [
        ("CIFAR-10", "cifar10", True),
        ("cifar10", "cifar10", True),
        ("CIFAR 10, as JPEG", "cifar10", True),
        ("ImageNet and (CIFAR_10)", "cifar10", True),
        ("CIFAR-100", "cifar10", False),
        ("CIFAR-10", "mnist", False),
        ("MNIST", "mnist", True),
        ("Fashion-MNIST", "mnist", False),
        ("Fashion-MNIST", "fmnist", True),
        ("fashion mnist", "fmnist", True),
        ("FMNIST", "fmnist", True),
        ("Kuzushiji-MNIST", "kmnist", True),
        ("Kuzushiji-MNIST", "mnist", False),
        ("KMNIST", "fmnist", False),
        ("CelebA", "celeba", True),
        ("", "cifar10", False),
        ("folder", "folder", False),
        ("arrays", "arrays", False),
    ],
)
def test_data_sets_are_known_by_their_names(text, dataset, wanted):
    assert overlaps({"trained_on": text}, dataset) is wanted


def test_the_embedded_network_overlaps_with_cifar10_alone():
    about = load_features("vgg").about
    assert overlaps(about, "cifar10") and not overlaps(about, "mnist")
    assert overlaps(about, "cifar10", about["classes"][:2])
    assert not any(overlaps(random_vgg().about, name) for name in ("cifar10", "mnist", "digits", "folder"))


@given(st.sets(st.sampled_from(TEN)))
def test_other_classes_of_the_same_data_set_are_other_images(classes):
    assert overlaps(LOW, "cifar10", sorted(classes)) == (not classes or bool(classes & set(TEN[:5])))


@pytest.mark.parametrize("private", [["cat"], ["5", "cat"], []])
def test_classes_that_the_network_does_not_know_prove_nothing(private):
    assert overlaps(LOW, "cifar10", private)


def test_without_a_list_of_all_classes_nothing_is_proved():
    assert overlaps({"trained_on": "CIFAR-10", "classes": TEN[:5]}, "cifar10", TEN[5:])
    assert not overlaps(LOW, "cifar10", TEN[5:])


def test_a_note_names_network_images_and_harm():
    (note,) = overlap_note("the judge", LOW, "cifar10", (), "it flatters")
    assert "the judge" in note and LOW["trained_on"] in note and note.endswith("it flatters")
    assert overlap_note("the judge", LOW, "cifar10", TEN[5:], "it flatters") == []
