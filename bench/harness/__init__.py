"""What the bench scripts are built from: a light load generator, accounting, servers, reports."""
