"""What a protocol ends with once its verdict is said: portraits, the report, and its copy in Weights & Biases.

None of it can spoil the verdict, which is in the study and in summary.json by then.
"""

from __future__ import annotations

import shlex

from synaptune.protocols.portraits import portraits
from synaptune.protocols.protocol import Protocol, say
from synaptune.search.space.space import Unit

REPORT = "report"  # folder below the study's


def closed(protocol: Protocol, before: Unit, after: Unit) -> None:
    """Make the portraits of two points and the report of the study; what goes wrong is said."""
    from synaptune.report.next_commands import address
    from synaptune.report.write import write_report
    from synaptune.study.callbacks.wandb_search import attach_report
    from synaptune.study.database.connection import shown
    from synaptune.study.reader import read_study

    portraits(protocol, before, after)
    place = protocol.study.place
    try:
        page = write_report(read_study(place.url, place.name), place.folder / REPORT)
        say(f"report: {page}")
        attach_report(place.folder, page.parent)
    except Exception as error:  # the verdict is said: a report can be written again
        say(f"report: not written ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
        say(f"report: synaptune report {shlex.join(address(place.name, shown(place.url)).words)} tries again")
