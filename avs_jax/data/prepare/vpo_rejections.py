"""What was not taken into VPO, counted by reason and class, with a few examples of each."""

from collections import Counter

EXAMPLES = 5


class Rejections:
    """Counts of (reason, class name or ""), and the first examples of each in the order of their names."""

    def __init__(self):
        self._examples: dict[tuple[str, str], set[str]] = {}
        self._counts: Counter = Counter()

    def add(self, reason: str, what: object, class_name: str = "", detail: str = "") -> None:
        """Counts `what` (an image, an annotation, a line of a table) as not taken."""
        key = (reason, class_name)
        self._counts[key] += 1
        kept = self._examples.setdefault(key, set())
        kept.add(f"{what}: {detail}" if detail else str(what))
        if len(kept) > EXAMPLES:
            kept.remove(max(kept))  # the smallest stay, whatever order they come in

    def update(self, other: "Rejections") -> None:
        """Adds all that `other` counted."""
        self._counts.update(other._counts)
        for key, examples in other._examples.items():
            self._examples[key] = set(sorted(self._examples.get(key, set()) | examples)[:EXAMPLES])

    def total(self, reason: str) -> int:
        return sum(count for (name, _), count in self._counts.items() if name == reason)

    def record(self) -> dict:
        """As JSON: reason -> {"count", "by_class", "examples"}, most frequent first."""
        reasons = sorted({reason for reason, _ in self._counts}, key=lambda reason: (-self.total(reason), reason))
        return {reason: self._entry(reason) for reason in reasons}

    def _entry(self, reason: str) -> dict:
        by_class = {name: n for (other, name), n in sorted(self._counts.items()) if other == reason and name}
        examples = sorted({text for (other, _), texts in self._examples.items() if other == reason for text in texts})
        entry = {"count": self.total(reason), "by_class": by_class, "examples": examples[:EXAMPLES]}
        return entry if by_class else {k: v for k, v in entry.items() if k != "by_class"}
