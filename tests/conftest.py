"""Settings of the whole suite."""

import os

from hypothesis import HealthCheck, settings

# A busy machine is no failure; and where a failure has to mean a change, the examples are the same each time.
settings.register_profile(
    "steady", deadline=None, derandomize=bool(os.environ.get("CI")), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
