"""Schedules: the day cut into slots of equal traffic, a plan for each, the cheapest way through them."""
