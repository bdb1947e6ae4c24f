"""In-memory adapters of every port: for tests, for trying things out, shipped."""
