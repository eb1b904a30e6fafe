"""Which pictures, objects and sounds VPO takes: pure functions of the candidates and a seed, whatever their order."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from avs_jax.data.prepare.vpo_coco import Instance, Picture, objects_of
from avs_jax.data.prepare.vpo_rejections import Rejections
from avs_jax.data.prepare.vpo_sounds import Sound

MAX_SOUNDING = 5  # objects of one picture (paper)


class Sample(NamedTuple):
    """One picture with the objects that sound, by class id and annotation id. silent: objects whose sound was taken
    away. sounds: one per object, once they are dealt."""

    picture: Picture
    objects: tuple[Instance, ...]
    silent: int = 0
    sounds: tuple[Sound, ...] = ()


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a split of a setting is made of.

    Attributes:
      setting: "ss", "ms" or "msmi".
      split: "train" or "test".
      seed: of every draw.
      count: pictures to take; None takes all.
      quota: class id -> masks at most; classes that are not in it have no limit.
      silence: in a picture with more than two objects, each loses its sound with this probability (the paper gives no
        number); one always keeps it, and at most five do.
    """

    setting: str
    split: str
    seed: int
    count: int | None = None
    quota: Mapping[int, int] = dataclasses.field(default_factory=dict)
    silence: float = 0.5


def draw(seed: int, *names: object) -> float:
    """A number in [0, 1) that depends on the seed and the names alone."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / (1 << 48)


def select(
    pictures: Sequence[Picture],
    sounds: Mapping[int, Sequence[Sound]],
    choice: Choice,
    rejected: Rejections,
    names: Mapping[int, str],
) -> list[Sample]:
    """The samples of one split, in the order of their pictures' ids, each picture at most once.

    Pictures with more of VPO's classes come first, equal ones in random order. The class with the fewest masks so far
    always takes the next picture, so that classes come out as even as the pictures allow.

    Args:
      pictures: the candidates.
      sounds: class id -> the split's sounds; objects of a class without any stay silent.
      rejected: objects and pictures that the rules leave out are counted here; those beyond the counts are not.
      names: class id -> its name, in the order in which ties are broken.
    """
    candidates = []
    for picture in sorted(pictures, key=lambda p: (-p.present, draw(choice.seed, "picture", p.id), p.id)):
        candidates += _candidates(_audible(picture, sounds, rejected, names), choice, rejected)
    waiting = {class_id: [] for class_id in names}
    for sample in reversed(candidates):  # the first stands last, to be popped
        for class_id in {item.class_id for item in sample.objects}:
            waiting[class_id].append(sample)
    rank = {class_id: place for place, class_id in enumerate(names)}
    masks: Counter = Counter()
    taken: dict[int, Sample] = {}
    passed: set[int] = set()  # pictures that would break a quota; quotas only fill up
    while any(waiting.values()) and (choice.count is None or len(taken) < choice.count):
        class_id = min((c for c in waiting if waiting[c]), key=lambda c: (masks[c], rank[c]))
        sample = waiting[class_id].pop()
        image, adds = sample.picture.id, Counter(item.class_id for item in sample.objects)
        if image in taken or (image in passed and choice.setting != "ss"):
            continue
        if any(masks[c] + n > choice.quota.get(c, masks[c] + n) for c, n in adds.items()):
            passed.add(image)
            continue
        taken[image] = sample
        masks.update(adds)
    return [taken[image] for image in sorted(taken)]


def _audible(picture: Picture, sounds, rejected: Rejections, names) -> Picture:
    """The picture without the objects that no sound is there for; each object of a class needs another one."""
    objects = {}
    for class_id, instances in picture.objects.items():
        if len(sounds.get(class_id, ())) >= len(instances):
            objects[class_id] = instances
        else:
            rejected.add("no sound of the class", picture.id, names[class_id])
    return picture._replace(objects=objects)


def _candidates(picture: Picture, choice: Choice, rejected: Rejections) -> list[Sample]:
    """What a picture could become: in SS a sample per class, of which one may be taken, else one or none."""
    if choice.setting == "ss":
        return [Sample(picture, instances) for _, instances in sorted(picture.objects.items())]
    objects = tuple(objects_of(picture))
    if not objects:
        return []
    heard = _heard(picture.id, objects, choice)
    sample = Sample(picture, heard, len(objects) - len(heard))
    if choice.setting == "msmi" and len({item.class_id for item in heard}) == len(heard):
        rejected.add("no class with several sounding instances", picture.id)
        return []
    return [sample]


def _heard(image: int, objects: tuple[Instance, ...], choice: Choice) -> tuple[Instance, ...]:
    """The objects that keep their sound."""
    if len(objects) <= 2:
        return objects
    chance = {item.id: draw(choice.seed, "silence", image, item.id) for item in objects}
    first, *others = sorted(chance, key=lambda id: (-chance[id], id))[:MAX_SOUNDING]
    keep = {first, *(id for id in others if chance[id] >= choice.silence)}
    return tuple(item for item in objects if item.id in keep)


def deal(samples: Sequence[Sample], sounds: Mapping[int, Sequence[Sound]], seed: int, split: str) -> list[Sample]:
    """Gives each object of the samples a sound of its class at random.

    No sound is used again before all of its class have been, and never twice in a picture.
    """
    piles = {
        class_id: sorted(found, key=lambda sound: (draw(seed, "sound", split, class_id, sound.stem), sound.stem))
        for class_id, found in sounds.items()
    }
    dealt: Counter = Counter()
    given: dict[int, tuple[Sound, ...]] = {}
    for sample in sorted(samples, key=lambda s: (draw(seed, "deal", split, s.picture.id), s.picture.id)):
        chosen = []
        for item in sample.objects:
            pile = piles[item.class_id]
            chosen.append(pile[dealt[item.class_id] % len(pile)])
            dealt[item.class_id] += 1
        given[sample.picture.id] = tuple(chosen)
    return [sample._replace(sounds=given[sample.picture.id]) for sample in samples]
