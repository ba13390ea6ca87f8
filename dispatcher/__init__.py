"""A Redis-centric, real-time trip dispatcher: exactly one driver wins each trip."""
