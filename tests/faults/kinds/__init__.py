"""The faults, each a coroutine that brings it about and ends it. How long is drawn from the seed."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.kinds import clocks, ledger, live, network, servers
from tests.faults.kinds.fault import Fault

#: What the shortest run has.
ALWAYS: Sequence[Fault] = (servers.kill_server, servers.pause_server, live.flush, live.fail_over)
ALL: Sequence[Fault] = (
    *ALWAYS,
    *servers.KILLED_ON_THE_ROAD,
    servers.die_together,
    *(fault for fault in live.ALL if fault not in ALWAYS),
    ledger.pause_postgres,
    ledger.terminate_sessions,
    ledger.hold_rows,
    ledger.lock_a_table,
    ledger.lock_each_other_out,
    ledger.refuse_writes,
    ledger.crash_postgres,
    ledger.fill_the_disk,
    *network.ALL,
    clocks.leap,
)
#: Those beside which a server may stand still.
WITH_A_PAUSE: Sequence[Fault] = (
    live.flush,
    live.fail_over,
    live.restart_redis_empty,
    ledger.terminate_sessions,
    ledger.hold_rows,
    network.swallow_answers_of_postgres,
)
#: During these Redis is away or forgets, or its time jumps: what it had admitted to limits is not held against it.
UNDECIDED: Sequence[Fault] = (
    *live.ALL,
    *network.OF_REDIS,
    servers.die_together,
    ledger.fill_the_disk,
    clocks.leap,
)
#: After these a server is another process than before.
SERVERS_DIE: Sequence[Fault] = (
    servers.kill_server,
    *servers.KILLED_ON_THE_ROAD,
    servers.die_together,
)
BY_NAME = {fault.__name__: fault for fault in ALL}
