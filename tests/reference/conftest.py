"""What the parity tests measured, as a table at the end of the run."""

from collections.abc import Callable

import pytest

MEASURED: dict[str, list[float]] = {}


@pytest.fixture(scope="session")
def measured() -> Callable[[str, float], None]:
    """Notes a component's largest difference in one comparison."""
    def note(component: str, difference: float) -> None:
        MEASURED.setdefault(component, []).append(difference)
    return note


def pytest_terminal_summary(terminalreporter) -> None:
    if MEASURED:
        terminalreporter.section("largest differences, relative to the largest value of the tensor")
        for component, differences in sorted(MEASURED.items()):
            terminalreporter.write_line(f"{component:<60} {max(differences):.2g} of {len(differences)} comparisons")
