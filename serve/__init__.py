"""Serving: bundles from the registry behind the Open Inference Protocol, on Ray Serve."""
