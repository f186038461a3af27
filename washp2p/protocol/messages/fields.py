"""The types of messages' fields, and their limits."""

from __future__ import annotations

from typing import Annotated

TEXT_LIMIT = 4000
"""The largest number of characters in a text, such as a reason."""

Name = Annotated[str, 300]
Text = Annotated[str, TEXT_LIMIT]
KEY_BYTES = 32
Key = Annotated[bytes, KEY_BYTES]
"""A public key of CURVE; empty where links are in plain text."""

Losses = Annotated[dict[str, int], 32]
"""The number of lost values, by reason."""

Addresses = Annotated[list[Name], 4]
PeerRow = tuple[int, Name, Name, Key, Addresses, Name]
"""One member as its peers see it: `roster.Peer.row`."""

QUARTERS = 4
"""A survey finds a distance for each quarter of the parameters, in flat order."""


def shortened(text: str) -> str:
    """`text`, cut to what fits a field of type `Text`."""
    return text[:TEXT_LIMIT]
