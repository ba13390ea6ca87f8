"""Which limits a call counts against."""

from __future__ import annotations

from dispatcher.config import Settings
from dispatcher.core.actors import Actor
from dispatcher.core.limits import Limit, LimitState, Rate
from dispatcher.core.zones import DEFAULT_ZONE, Zone
from dispatcher.live.keys import keys_of
from dispatcher.live.scripts import Scripts
from dispatcher.observe.refusal_log import log_refusal
from dispatcher.service.answers import RateLimited


class Limits:
    """The limits of the settings, by class; a zone may have its own."""

    def __init__(self, settings: Settings, scripts: Scripts) -> None:
        self._scripts = scripts
        self._rates: dict[str, Rate] = {
            "trip_accept": settings.limit_trip_accept,
            "trip_cancel": settings.limit_trip_cancel,
            "location_update": settings.limit_location_update,
            "general": settings.limit_general,
            "anonymous": settings.limit_anonymous,
            "ip": settings.limit_ip,
        }

    def of(
        self, limit_class: str, actor: Actor | None, ip: str | None, zone: Zone | None = None
    ) -> list[Limit]:
        """The limits on one call: per user where one is known, per client IP where none is."""
        rate = self._rates[limit_class]
        if zone is not None and limit_class in zone.limits:
            rate = Rate(*zone.limits[limit_class])
        limits = []
        if rate.limit and (actor is not None or ip is not None):
            subject = actor.user_id if actor is not None else ip
            limits.append(Limit(limit_class, str(subject), rate))
        if ip is not None and self._rates["ip"].limit:
            limits.append(Limit("ip", ip, self._rates["ip"]))
        return limits

    async def check(self, limit_class: str, actor: Actor | None, ip: str | None) -> LimitState | None:
        """Counts one call. Raises RateLimited. None where no limit applies."""
        limits = self.of(limit_class, actor, ip)
        if not limits:
            return None
        verdict = await self._scripts.check_limit(keys_of(DEFAULT_ZONE), limits)
        if verdict.code == "rate_limited" and verdict.limit is not None:
            refuse(verdict.limit, actor, ip)
        return verdict.limit


def refuse(limit: LimitState, actor: Actor | None, ip: str | None) -> None:
    """Logs that a limit was hit and raises RateLimited."""
    log_refusal(
        "rate_limit_exceeded", limit_class=limit.name, user=actor.user_id if actor else None, ip=ip
    )
    raise RateLimited(limit)
