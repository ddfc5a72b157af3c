"""What a protocol ends with once its verdict is said: portraits, the report, and its copy in Weights & Biases.

None of it can spoil the verdict, which is in the study and in summary.json by then.
"""

from __future__ import annotations

import shlex

from synaptune.core.text import get_first_line
from synaptune.protocols.inspection import store_inspections
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.search.space.space import UnitPoint

REPORT_FOLDER = "report"  # folder below the study's


def write_final_report(protocol: Protocol, before: UnitPoint, after: UnitPoint) -> None:
    """Make the portraits of two points and the report of the study; what goes wrong is said."""
    from synaptune.report.next_commands import make_reference
    from synaptune.report.write import write_report
    from synaptune.study.callbacks.wandb_search import attach_report
    from synaptune.study.database.connection import redact_url
    from synaptune.study.reader import read_study

    store_inspections(protocol, before, after)
    place = protocol.study.location
    try:
        page = write_report(read_study(place.url, place.name), place.folder / REPORT_FOLDER)
        print_message(f"report: {page}")
        attach_report(place.folder, page.parent)
    except Exception as error:  # the verdict is said: a report can be written again
        print_message(f"report: not written ({type(error).__name__}: {get_first_line(error)})")
        print_message(
            f"report: synaptune report {shlex.join(make_reference(place.name, redact_url(place.url)).arguments)} tries again"
        )
