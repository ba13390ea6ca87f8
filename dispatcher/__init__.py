"""A Redis-centric, real-time trip dispatcher: exactly one driver wins each trip."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("redis-trip-dispatcher")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
