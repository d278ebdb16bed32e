"""Run real operations on a device, time them, compare them with float32, and judge."""
