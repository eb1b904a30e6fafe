"""Which of male, female and baby a picture's one person is, told by its captions.

Neither the paper nor the public code says how COCO's persons were divided: this rule is ours.
"""

import re
from collections.abc import Sequence

from avs_jax.data.prepare.vpo_classes import BABY, FEMALE, MALE

_WORDS = {
    MALE: ("man", "boy", "guy", "gentleman", "male", "father", "dad"),
    FEMALE: ("woman", "girl", "lady", "female", "mother", "mom"),
    BABY: ("baby", "infant", "toddler", "newborn"),
}
_GROUP = {word: group for group, words in _WORDS.items() for word in words}
_SEVERAL = frozenset(("men", "boys", "guys", "gentlemen", "males", "women", "girls", "ladies", "females", "babies",
                      "infants", "toddlers", "couple"))  # fmt: skip
# "baby elephant", "baby carriage": no person
_NOT_A_BABY = frozenset(
    "elephant elephants zebra zebras giraffe giraffes cow cows calf sheep lamb lambs goat goats bird birds bear bears "
    "horse horses duck ducks dog dogs cat cats kitten kittens puppy panda monkey animal animals "
    "carriage stroller seat chair bottle doll toy bed crib blue carrot carrots".split()
)


def part_of_person(captions: Sequence[str], agreement: float = 0.5) -> tuple[int | None, str]:
    """The class of a picture's only person.

    All words of the captions must name the same group, and at least the share `agreement` of the captions, two or
    more, must name it. "A baby boy" is a baby; a plural ("two men") names several persons, so it decides nothing.

    Args:
      captions: sentences about one picture, in any order.
    Returns:
      MALE, FEMALE or BABY and "", or None and the reason why none of them.
    """
    if not captions:
        return None, "person without captions"
    mentions = [_groups(caption) for caption in captions]
    if None in mentions:
        return None, "captions name several persons"
    named = set().union(*mentions)
    if len(named) > 1:
        return None, "captions name different persons"
    support = sum(bool(groups) for groups in mentions)
    if support < max(2, agreement * len(captions)):
        return None, "too few captions say which person"
    return named.pop(), ""


def _groups(caption: str) -> set[int] | None:
    """The groups that a caption names; None where it names several persons of one."""
    text = re.sub(r"\b(baby|infant|toddler|newborn)\s+(boy|girl)\b", r"\1", caption.lower())
    words = re.findall(r"[a-z]+", text)
    if _SEVERAL & set(words):
        return None
    pairs = zip(words, [*words[1:], ""], strict=True)
    return {_GROUP[word] for word, following in pairs if word in _GROUP and not _toy(word, following)}


def _toy(word: str, following: str) -> bool:
    return _GROUP[word] == BABY and following in _NOT_A_BABY
