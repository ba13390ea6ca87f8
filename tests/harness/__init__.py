"""What tests of several floors stand on: server processes, a server's services, a zone in Redis."""

import pytest

pytest.register_assert_rewrite(
    "tests.harness.servers", "tests.harness.services", "tests.harness.lua_zone"
)
