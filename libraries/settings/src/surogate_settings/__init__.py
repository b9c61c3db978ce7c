"""Strict settings with the origin of every value. See the modules ``sources``, ``structure``, ``ranges``, ``nearest``."""

__version__ = "0.1.0.dev0+src"
