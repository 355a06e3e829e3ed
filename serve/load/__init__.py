"""Load on a served model, and what became of it: rates, latencies, errors, who answered."""
