"""Which limits a call counts against, and the counting of calls that have no script of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from dispatcher.config import Settings
from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.limits import Limit, LimitClass, Limits, LimitState, Rate
from dispatcher.core.zones import DEFAULT_ZONE, Zone
from dispatcher.live.keys import keys_of
from dispatcher.live.limits import Admission, LimitScripts
from dispatcher.observe.refusal_log import log_refusal
from dispatcher.observe.series import LIMITED
from dispatcher.service.answers import Answer, RateLimited, rate_limited_answer, refusal_answer
from dispatcher.service.authorities import Authorities
from dispatcher.service.local_limits import LocalLimits

_USERS: Final = frozenset({Role.CUSTOMER, Role.DRIVER})

#: Of a class in a zone: a user's rate and the zone that keeps their log, and the same of an address.
#: None: there is no limit.
_Rules = tuple[Rate | None, str, Rate | None, str]


class RateLimits:
    """The limits of the settings, by class; a zone may have its own.

    An answer that a service returns was counted by its script. A refusal that is raised before any
    script ran is counted by `refuse`, and nowhere else.

    A user has one allowance of each class, whatever the zones: its log is the default zone's. A limit
    that a zone sets itself has a log of its own, there. In a cluster, each zone has logs of its own,
    since a script decides on the keys of one zone.

    While Redis is away, each process counts what it admits itself, against its share of each allowance.
    """

    def __init__(
        self,
        settings: Settings,
        scripts: LimitScripts,
        local: LocalLimits,
        authorities: Authorities,
        begin_load: Callable[[str], Awaitable[None]],
    ) -> None:
        self._scripts = scripts
        self._authorities = authorities
        #: Seeds the logs that a cold zone keeps, and begins its load without waiting for it.
        self._begin_load = begin_load
        #: What counts while the zone that keeps the logs does without its Redis.
        self.local = local
        # One node runs a script on keys of several zones; the nodes of a cluster do not.
        self._has_one_node = not settings.has_redis_cluster
        self._rules: dict[tuple[LimitClass, str], _Rules] = {}
        self._rates: dict[LimitClass, Rate] = {
            LimitClass.TRIP_ACCEPT: settings.limit_trip_accept,
            LimitClass.TRIP_CANCEL: settings.limit_trip_cancel,
            LimitClass.LOCATION_UPDATE: settings.limit_location_update,
            LimitClass.GENERAL: settings.limit_general,
            LimitClass.OPERATOR: settings.limit_operator,
            LimitClass.ANONYMOUS: settings.limit_anonymous,
            LimitClass.IP: settings.limit_ip,
        }

    def of(
        self, limit_class: LimitClass, actor: Actor | None, ip: str | None, zone: Zone | None = None
    ) -> Limits:
        """The limits on one call: per user where one is known, per client IP where none is.

        Whatever an admin calls counts as `operator`: their screens ask more than an app, and what they
        do is not held against what the app of a user of the same id may. The dispatcher's own changes
        are not limited.
        """
        user = ip
        if actor is not None:
            if actor.role not in _USERS:
                if actor.role is Role.SYSTEM:
                    return ()
                limit_class = LimitClass.OPERATOR
            user = actor.user_id
        rules = self._rules.get((limit_class, "" if zone is None else zone.name))
        if rules is None:
            rules = self._find_rules(limit_class, zone)
        rate, log, ip_rate, ip_log = rules
        limits: Limits = () if rate is None or user is None else (Limit(limit_class, user, rate, log),)
        if ip_rate is not None and ip is not None:
            limits += (Limit(LimitClass.IP, ip, ip_rate, ip_log),)
        return limits

    def _find_rules(self, limit_class: LimitClass, zone: Zone | None) -> _Rules:
        rate, shared_log = self._rates[limit_class], DEFAULT_ZONE
        if zone is not None and not self._has_one_node:
            shared_log = zone.name
        log = shared_log
        if zone is not None and limit_class in zone.limits:
            rate, log = Rate(*zone.limits[limit_class]), zone.name
        ip_rate = self._rates[LimitClass.IP]
        rules = (rate if rate.limit else None, log, ip_rate if ip_rate.limit else None, shared_log)
        self._rules[limit_class, "" if zone is None else zone.name] = rules
        return rules

    async def count(
        self, limit_class: LimitClass, actor: Actor | None, ip: str | None
    ) -> LimitState | None:
        """Counts one call. None where no limit applies. Raises RateLimited, StoreUnavailable."""
        limits = self.of(limit_class, actor, ip)
        if not limits:
            return None
        admission = await self.check(limits)
        if not admission.is_admitted and admission.limit is not None:
            log_limited(admission.limit, actor, ip)
            raise RateLimited(admission.limit)
        return admission.limit

    async def check(self, limits: Limits) -> Admission:
        """Counts one call against these limits, in the process alone where Redis is away.

        Raises StoreUnavailable where it is not known to be.
        """
        admission = await self._authorities.ask_redis(DEFAULT_ZONE, lambda: self._check_in_redis(limits))
        if admission is not None:
            if admission.is_admitted:
                self.local.note(limits, admission.limit)
            return admission
        is_admitted, state = self.local.check(limits)
        return Admission(is_admitted, self.local.record(limits, state) if is_admitted else state)

    async def _check_in_redis(self, limits: Limits) -> Admission:
        keys = keys_of(DEFAULT_ZONE)
        admission = await self._scripts.check_limit(keys, limits)
        if admission.is_cold:
            # Calls of other zones are counted here, too: none of them waits for the load of this one.
            await self._begin_load(DEFAULT_ZONE)
            admission = await self._scripts.check_limit(keys, limits, is_seeded=True)
        return admission

    async def refuse(self, refusal: Refusal, actor: Actor | None, ip: str | None) -> Answer:
        """Answers a call that was refused before anything counted it, and counts it.

        Counts a known user's call as `general` (an admin's: `operator`), a stranger's as `anonymous`.
        Raises StoreUnavailable for a known user: a stranger's wrong token stays wrong, whoever is away.
        """
        limit_class = LimitClass.ANONYMOUS if actor is None else LimitClass.GENERAL
        try:
            limit = await self.count(limit_class, actor, ip)
        except RateLimited as limited:
            return rate_limited_answer(limited.state)
        except StoreUnavailable:
            if actor is not None:
                raise
            limit = None
        return refusal_answer(refusal, limit)


def log_limited(limit: LimitState, actor: Actor | None, ip: str | None = None) -> None:
    """Logs that a limit was hit."""
    LIMITED.add(limit.name)
    address = {} if ip is None else {"ip": ip}
    user = actor.user_id if actor else None
    log_refusal("rate_limit_exceeded", limit_class=limit.name, user=user, **address)
