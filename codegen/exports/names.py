"""Names that every place accepts: directories, DNS labels (RFC 1123, first a letter), nginx upstreams."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

# A StatefulSet's pods carry a label of its name and a hash of 11 characters, at most 63 together; pods add "-INDEX".
LONGEST = 40


def safe_name(text: str) -> str:
    """Lower-case letters, digits and single dashes, beginning with a letter; never empty."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name or not name[0].isalpha():
        name = f"x-{name}".rstrip("-")
    return name[:LONGEST].rstrip("-")


def safe_names(texts: Iterable[str]) -> dict[str, str]:
    """A safe name for each text, different for different texts: where two would agree, each gets a hash of its text."""
    texts = list(dict.fromkeys(texts))
    plain = {text: safe_name(text) for text in texts}
    taken = list(plain.values())
    names: dict[str, str] = {}
    for text in texts:
        name = plain[text]
        if taken.count(name) > 1:
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            name = f"{name[: LONGEST - 9].rstrip('-')}-{digest}"
        names[text] = name
    return names
