-- Each table's size, the part of its indexes, live and dead rows, and its last vacuum and analyze.
-- Sizes grow with the number of trips, except that of idempotency_keys, which the clean-up bounds.
-- Worry when a table has more dead rows than live ones, or no recent vacuum: autovacuum does not keep up.
SELECT relname, pg_size_pretty(pg_total_relation_size(relid)) AS total, pg_size_pretty(pg_indexes_size(relid)) AS indexes,
       n_live_tup, n_dead_tup, last_autovacuum, last_autoanalyze
  FROM pg_stat_user_tables ORDER BY pg_total_relation_size(relid) DESC;
