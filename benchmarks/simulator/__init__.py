"""The simulator beside what is known: laws of queues, and what papers report from inputs they published."""
