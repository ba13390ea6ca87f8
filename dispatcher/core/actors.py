"""Who acts: users in their roles, as tokens name them, and the dispatcher itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

# Redis keys are built from ids, so nothing that means something in a key may pass.
USER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@|-]{0,63}")


class Role(StrEnum):
    """Who acts. `system` is the dispatcher itself: expiry, drivers that are lost."""

    DRIVER = "driver"
    CUSTOMER = "customer"
    ADMIN = "admin"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who a request is from, as its token says."""

    user_id: str
    role: Role
    #: Where messages to this user go.
    address: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", address_of(self.role, self.user_id))


def address_of(role: Role, user_id: str) -> str:
    """A user in a role, on whichever server their sockets are: `role:id`."""
    return f"{role}:{user_id}"


#: The dispatcher itself, where no user is behind a change.
SYSTEM: Final = Actor("dispatcher", Role.SYSTEM)
