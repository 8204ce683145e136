"""Seconds, bytes and watts of one replica: the first cost model, a roofline with fitted floors."""
