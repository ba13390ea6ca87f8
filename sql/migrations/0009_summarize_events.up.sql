-- A zone that is loaded reads the newest events by their time. Rows that the index has not summarized yet are all read, and
-- a table that is only added to is vacuumed seldom.
ALTER INDEX trip_events_created SET (autosummarize = on);
