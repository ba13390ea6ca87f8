ALTER INDEX trip_events_created RESET (autosummarize);
