"""The parts of the bench scripts: load generators, CPU times, servers, fixtures, figures."""
