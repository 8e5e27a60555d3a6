"""Latency of a bundle over the user's own code path: measured, judged, shown and compared."""
