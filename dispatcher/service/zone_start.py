"""The zones at the start of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dispatcher.core.errors import StoreUnavailable
from dispatcher.service.rehydration import Rehydration


async def warm_zones(rehydration: Rehydration, zones: Sequence[str]) -> None:
    """Loads zones. One whose node of a cluster is away is loaded once it is back.

    Raises StoreUnavailable where that is so for all of them.
    """
    loads = (rehydration.warm(zone) for zone in zones)
    errors = [end for end in await asyncio.gather(*loads, return_exceptions=True) if end is not None]
    for error in errors:
        if not isinstance(error, StoreUnavailable) or len(errors) == len(zones):
            raise error
