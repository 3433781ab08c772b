"""What the groups of a config are made of, beside their fields."""

from typing import Literal

from cluster.core.errors import ConfigError

OnResume = Literal["free", "rounds", "cuts", "extends"]
"""What a field may be when a run goes on that had another value of it. `free`: anything, it does not decide the result.
`rounds`: anything, and from then on the result is the same within rounding. `cuts`: as `rounds`, where no pass draws
or normalises. `extends`: what makes the run longer. Each group of fields has them as `on_resume`; a field without one
decides the result, and stays as it is."""


def require(condition: bool, field_name: str, value: object, remedy: str) -> None:
    """Raises: ConfigError naming field, value and remedy, if the condition does not hold."""
    if not condition:
        raise ConfigError(f"--{field_name.replace('_', '-')} {value}: {remedy}")
