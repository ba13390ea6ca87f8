"""What Postgres' catalogs say of a schema: every object of `public` by its definition."""

from __future__ import annotations

import asyncpg

#: Each object as (kind, name, definition). Nothing in it depends on the order in which objects were made, except
#: the order of a table's columns.
CATALOG = """
SELECT 'relation' AS kind, c.relname AS name,
       concat_ws(' ', c.relkind, c.relpersistence, am.amname, c.reloptions, c.relrowsecurity,
                 c.relforcerowsecurity, c.relreplident, c.relispartition, c.reltablespace, c.relacl,
                 'is ' || obj_description(c.oid, 'pg_class')) AS definition
  FROM pg_class c LEFT JOIN pg_am am ON am.oid = c.relam
 WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'column', c.relname || '.' || a.attname,
       concat_ws(' ', row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum),
                 format_type(a.atttypid, a.atttypmod), 'not null ' || a.attnotnull, 'identity ' || a.attidentity::text,
                 'generated ' || a.attgenerated::text, 'storage ' || a.attstorage::text, 'compression ' || a.attcompression::text,
                 'collation ' || a.attcollation::regcollation, a.attstattarget, a.attoptions, a.attacl,
                 'default ' || pg_get_expr(d.adbin, d.adrelid), 'is ' || col_description(c.oid, a.attnum))
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'constraint', coalesce(r.relname, t.typname) || '.' || o.conname,
       concat_ws(' ', o.contype, pg_get_constraintdef(o.oid), 'deferrable ' || o.condeferrable,
                 'deferred ' || o.condeferred, 'validated ' || o.convalidated,
                 'is ' || obj_description(o.oid, 'pg_constraint'))
  FROM pg_constraint o LEFT JOIN pg_class r ON r.oid = o.conrelid LEFT JOIN pg_type t ON t.oid = o.contypid
 WHERE o.connamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', r.relname || '.' || c.relname,
       concat_ws(' ', pg_get_indexdef(c.oid), 'unique ' || i.indisunique, 'primary ' || i.indisprimary,
                 'valid ' || i.indisvalid, 'clustered ' || i.indisclustered, 'identifies ' || i.indisreplident)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class r ON r.oid = i.indrelid
 WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'sequence', c.relname,
       concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
                 'cycle ' || s.seqcycle, 'of ' || o.refobjid::regclass || '.' || a.attname)
  FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
  LEFT JOIN pg_depend o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid
                       AND o.refclassid = 'pg_class'::regclass AND o.deptype IN ('a', 'i')
  LEFT JOIN pg_attribute a ON a.attrelid = o.refobjid AND a.attnum = o.refobjsubid
 WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'function', p.oid::regprocedure::text,
       concat_ws(' ', pg_get_functiondef(p.oid), p.proacl, 'is ' || obj_description(p.oid, 'pg_proc'))
  FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'type', t.typname,
       concat_ws(' ', t.typtype, t.typcategory, format_type(nullif(t.typbasetype, 0), t.typtypmod),
                 'not null ' || t.typnotnull, 'default ' || t.typdefault, 'storage ' || t.typstorage::text,
                 'collation ' || t.typcollation::regcollation, t.typacl, 'is ' || obj_description(t.oid, 'pg_type'),
                 (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder)
                    FROM pg_enum WHERE enumtypid = t.oid))
  FROM pg_type t WHERE t.typnamespace = 'public'::regnamespace
UNION ALL
SELECT 'trigger', tgrelid::regclass || '.' || tgname,
       concat_ws(' ', pg_get_triggerdef(oid), tgenabled, 'is ' || obj_description(oid, 'pg_trigger'))
  FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT 'rule', tablename || '.' || rulename, definition FROM pg_rules WHERE schemaname = 'public'
UNION ALL
SELECT 'policy', tablename || '.' || policyname, p::text FROM pg_policies p WHERE schemaname = 'public'
UNION ALL
SELECT 'statistics', stxname, pg_get_statisticsobjdef(oid)
  FROM pg_statistic_ext WHERE stxnamespace = 'public'::regnamespace
UNION ALL
SELECT 'schema', nspname, '' FROM pg_namespace
 WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')
UNION ALL
SELECT 'extension', extname, extversion FROM pg_extension WHERE extname <> 'plpgsql'
UNION ALL
SELECT 'event trigger', evtname, concat_ws(' ', evtevent, evtfoid::regproc, evtenabled) FROM pg_event_trigger
 ORDER BY 1, 2, 3
"""


async def read_catalog(connection: asyncpg.Connection) -> dict[tuple[str, str], str]:
    """The schema of a database: the definition of each object by its kind and name."""
    rows = await connection.fetch(CATALOG)
    found = {(row["kind"], row["name"]): row["definition"] for row in rows}
    assert len(found) == len(rows), "two objects have one name"
    return found


def differences(
    one: dict[tuple[str, str], str], other: dict[tuple[str, str], str]
) -> dict[tuple[str, str], tuple[str | None, str | None]]:
    """What two schemas do not have in common, as each of them has it."""
    return {
        object_: (one.get(object_), other.get(object_))
        for object_ in sorted(one.keys() | other.keys())
        if one.get(object_) != other.get(object_)
    }
