"""What the parity tests measured, as a table at the end of the run."""

from collections.abc import Callable

import pytest

MEASURED = "measured"                             # of a test's properties, which reach the report from any process


@pytest.fixture
def measured(record_property) -> Callable[[str, float], None]:
    """Notes a component's largest difference in one comparison."""
    def note(component: str, difference: float) -> None:
        record_property(MEASURED, (component, difference))
    return note


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    differences: dict[str, list[float]] = {}
    for name, value in (pair for report in reports for pair in report.user_properties):
        if name == MEASURED:
            differences.setdefault(value[0], []).append(value[1])
    if differences:
        terminalreporter.section("largest differences, relative to the largest value of the tensor")
        for component, found in sorted(differences.items()):
            terminalreporter.write_line(f"{component:<60} {max(found):.2g} of {len(found)} comparisons")
