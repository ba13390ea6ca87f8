-- What the schema is made of.

-- name: list_objects()
-- What a schema is made of, for a comparison; in detail, a column's table and a function's text.
SELECT 'table' AS kind, c.relname::text AS name, '' AS detail FROM pg_class c
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
UNION ALL
SELECT 'column', c.relname || '.' || a.attname, c.relname::text
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
UNION ALL
SELECT 'function', p.oid::regprocedure::text, p.prosrc FROM pg_proc p
 WHERE p.pronamespace = current_schema()::regnamespace
UNION ALL
SELECT 'type', t.typname::text, '' FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
 WHERE t.typnamespace = current_schema()::regnamespace AND (t.typtype IN ('d', 'e') OR c.relkind = 'c');

-- name: statement_that_counts(name)$
-- The statement that counts the rows of a table, with the name in quotes where it needs them.
SELECT format('SELECT count(*) FROM %I', :name::text);
