"""The last steps of a protocol: inspection of two points, the report, its copy in Weights & Biases.

The verdict is stored in the study and in summary.json before, so an error here cannot lose it.
"""

from __future__ import annotations

import shlex

from synaptune.core.text import get_first_line
from synaptune.protocols.inspection import store_inspections
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.search.space.space import UnitPoint

REPORT_FOLDER = "report"  # folder below the study's


def write_final_report(protocol: Protocol, before: UnitPoint, after: UnitPoint) -> None:
    """Store the inspections of two points and write the report of the study.

    An error is printed and does not end the protocol.

    Args:
        protocol: the protocol of the study.
        before: the start point.
        after: the best point.
    """
    from synaptune.report.next_commands import make_reference
    from synaptune.report.wandb_results import attach_results
    from synaptune.report.write import write_report
    from synaptune.study.database.connection import redact_url
    from synaptune.study.reader import read_study

    store_inspections(protocol, before, after)
    location = protocol.study.location
    protocol.study.mark_ended()  # the report is of an ended study, although this process holds it
    try:
        snapshot = read_study(location.url, location.name)
        page, *_ = write_report(snapshot, location.folder / REPORT_FOLDER)
        print_message(f"report: {page}")
        attach_results(snapshot, location.folder, page.parent)
    except Exception as error:  # the verdict is stored; a report can be written again
        print_message(f"report: not written ({type(error).__name__}: {get_first_line(error)})")
        reference = make_reference(location.name, redact_url(location.url))
        print_message(f"report: synaptune report {shlex.join(reference.arguments)} tries again")
