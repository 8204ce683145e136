"""Replicas of mixture-of-experts experts on devices, so that the busiest device carries as little as possible."""
