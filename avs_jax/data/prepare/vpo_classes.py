"""The classes of VPO: their order, their names in COCO and their sounds in VGGSound (Chen et al., 2023, and code)."""

from typing import NamedTuple

import numpy as np

from avs_jax.data.clip import IGNORE


class VPOClass(NamedTuple):
    """One class of sounding objects.

    Attributes:
      name: as in the data set's tables (`cateName`).
      id: in its masks and tables (`cateId`): COCO's category, or one of the three that stand for a split person.
      sounds: VGGSound's labels whose clips may be heard from it. The authors published the clips they chose, not the
        labels they chose among: this mapping is ours.
    """

    name: str
    id: int
    sounds: tuple[str, ...]


PERSON = 1  # COCO's category
MALE, FEMALE, BABY = 92, 93, 94  # no categories of COCO's: the authors' numbers for the parts of `person`

_FEMALE = ("female speech, woman speaking", "female singing")
_MALE = ("male speech, man speaking", "male singing")
_BABY = ("baby babbling", "baby crying", "baby laughter")

# fmt: off
_CLASSES = (
    VPOClass("airplane", 5, ("airplane", "airplane flyby")),
    VPOClass("baby", BABY, _BABY),
    VPOClass("bird", 16, ("bird chirping, tweeting", "bird squawking", "bird wings flapping")),
    VPOClass("bus", 6, ("driving buses",)),
    VPOClass("car", 3, ("car passing by", "car engine idling", "car engine knocking", "car engine starting",
                        "race car, auto racing")),
    VPOClass("cat", 17, ("cat meowing", "cat purring", "cat growling", "cat hissing", "cat caterwauling")),
    VPOClass("cell phone", 77, ("cell phone buzzing",)),
    VPOClass("cow", 21, ("cow lowing", "cattle mooing")),
    VPOClass("dog", 18, ("dog barking", "dog bow-wow", "dog baying", "dog growling", "dog howling", "dog whimpering")),
    VPOClass("elephant", 22, ("elephant trumpeting",)),
    VPOClass("female", FEMALE, _FEMALE),
    VPOClass("horse", 19, ("horse neighing", "horse clip-clop")),
    VPOClass("keyboard", 76, ("typing on computer keyboard",)),
    VPOClass("male", MALE, _MALE),
    VPOClass("motorcycle", 4, ("driving motorcycle",)),
    VPOClass("mouse", 74, ("mouse clicking",)),  # the computer's
    VPOClass("sheep", 20, ("sheep bleating",)),
    VPOClass("skateboard", 41, ("skateboarding",)),
    VPOClass("sports ball", 37, ("basketball bounce", "playing volleyball", "shot football")),
    VPOClass("tennis racket", 43, ("playing tennis",)),
    VPOClass("zebra", 24, ("zebra braying",)),
)
# fmt: on


def classes(fold_person: bool = False) -> tuple[VPOClass, ...]:
    """The sounding classes in the order of their labels, from 1: 21, or 19 where male, female and baby are one.

    The public code's folded list has `person` between keyboard and motorcycle.
    """
    if not fold_person:
        return _CLASSES
    person = VPOClass("person", PERSON, (*_MALE, *_FEMALE, *_BABY))
    rest = [entry for entry in _CLASSES if entry.name not in ("female", "baby")]
    return tuple(person if entry.name == "male" else entry for entry in rest)


def class_names(fold_person: bool = False) -> tuple[str, ...]:
    """With the background first."""
    return ("background", *(entry.name for entry in classes(fold_person)))


def label_table(fold_person: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """What the values of a stored mask become: (256,) uint8 labels, and (256,) bool, whether a value is known.

    One look-up for all classes at once: replacing them one after the other, as the public code does, would take a car
    (3 -> 5) for an airplane (5 -> 1) where both are in the picture.
    """
    labels, known = np.zeros(256, np.uint8), np.zeros(256, bool)
    labels[IGNORE] = IGNORE
    known[[0, IGNORE]] = True
    for label, entry in enumerate(classes(fold_person), 1):
        ids = (PERSON, MALE, FEMALE, BABY) if entry.id == PERSON else (entry.id,)
        labels[list(ids)], known[list(ids)] = label, True
    return labels, known
