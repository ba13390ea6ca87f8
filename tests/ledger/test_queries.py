"""The queries of `sql/queries/` share one dictionary, in which a second one of a name takes the first's place."""

from __future__ import annotations

import re
from collections import Counter

from dispatcher.resources import SQL_DIR


def test_no_two_queries_have_one_name() -> None:
    texts = [path.read_text() for path in sorted((SQL_DIR / "queries").glob("*.sql"))]
    names = Counter(re.findall(r"^-- name: (\w+)", "\n".join(texts), re.MULTILINE))
    assert names, "there are queries"
    assert [name for name, times in names.items() if times > 1] == []
